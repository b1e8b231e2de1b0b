// A WebSocket server and client of npm's ws, for test/conformance.
//
//   node websocket.mjs serve PORT   what it saw of a connection: /seen?id=ID
//   node websocket.mjs ask          one case a line in, what was seen a line out
import http from 'node:http'
import readline from 'node:readline'
import { createHash } from 'node:crypto'
import { WebSocket, WebSocketServer } from 'ws'

const hash = b => createHash('sha256').update(b).digest('hex').slice(0, 8)
const content = n => Buffer.from('0123456789abcdef'.repeat(Math.ceil(n / 16)).slice(0, n))

// watch records what a WebSocket sees.
function watch(ws, seen) {
  ws.on('message', (b, binary) => seen.push(`${binary ? 'binary' : 'text'} ${b.length} ${hash(b)}`))
  ws.on('ping', b => seen.push(`ping ${b.length} ${hash(b)}`))
  ws.on('pong', b => seen.push(`pong ${b.length} ${hash(b)}`))
  ws.on('error', e => { if (String(e.code).startsWith('WS_ERR')) seen.push('error ' + e.code) })
  ws.on('close', (code, reason) => seen.push(code === 1006 ? 'gone' : `close ${code} ${reason}`))
}

// act does the steps of a case, one after another.
async function act(ws, seen, steps) {
  for (const s of steps) {
    const binary = s.kind === 'binary'
    switch (s.op) {
      case 'send': ws.send(s.text !== undefined ? Buffer.from(s.text) : content(s.size), { binary }); break
      case 'many': for (let i = 0; i < s.count; i++) ws.send(`message ${i}`); break
      case 'fragments': {
        const whole = s.text !== undefined ? Buffer.from(s.text) : content(s.size)
        for (let at = 0; at < whole.length; at += s.each) {
          ws.send(whole.subarray(at, at + s.each), { binary, fin: at + s.each >= whole.length })
          if (s.pings) ws.ping('between')
        }
        break
      }
      case 'ping': ws.ping(content(s.size)); break
      case 'pong': ws.pong(content(s.size)); break
      case 'close': s.code ? ws.close(s.code, s.reason) : ws.close(); break
      case 'reset': ws._socket.resetAndDestroy(); break
      case 'wait': await until(() => seen.filter(e => e.startsWith(s.for)).length >= s.count || ws.readyState === 3); break
    }
  }
}

const until = async done => { while (!done()) await new Promise(r => setTimeout(r, 2)) }

function serve(port) {
  const all = new Map()
  const server = http.createServer((req, res) => {
    const id = new URL(req.url, 'http://x').searchParams.get('id')
    res.end(JSON.stringify(all.get(id) ?? []))
  })
  const sockets = new WebSocketServer({
    server, perMessageDeflate: { threshold: 100 }, maxPayload: 8 << 20,
    handleProtocols: offered => offered.has('second') ? 'second' : false,
  })
  sockets.on('connection', (ws, req) => {
    const q = new URL(req.url, 'http://x').searchParams
    const seen = [`asked ${req.headers['sec-websocket-protocol'] ?? ''} ${req.headers['sec-websocket-extensions'] ?? ''}`]
    all.set(q.get('id'), seen)
    watch(ws, seen)
    ws.on('close', () => seen.push(`compressed ${ws.extensions !== '' && ws._socket?.bytesRead < 30000}`))
    ws.on('close', () => seen.push('end'))
    ws.on('message', (b, binary) => ws.send(b, { binary }))
    act(ws, seen, JSON.parse(q.get('steps')) ?? [])
  })
  server.listen(port, '127.0.0.1')
}

async function ask({ url, host, protocols, deflate, steps }) {
  const seen = []
  const ws = new WebSocket(url, protocols ?? [], { headers: { Host: host }, perMessageDeflate: deflate ? { threshold: 100 } : false, maxPayload: 8 << 20 })
  ws.on('upgrade', res => seen.push(`answered ${res.headers['sec-websocket-protocol'] ?? ''} ${res.headers['sec-websocket-extensions'] ?? ''}`))
  ws.on('error', e => { if (!e.code) seen.push('error ' + e.message) })
  watch(ws, seen)
  const closed = new Promise(r => ws.on('close', r))
  ws.on('open', () => act(ws, seen, steps ?? []))
  const late = setTimeout(() => { seen.push('still open'); ws.terminate() }, 20000)
  await closed
  clearTimeout(late)
  return seen
}

if (process.argv[2] === 'serve') serve(+process.argv[3])
else for await (const line of readline.createInterface({ input: process.stdin })) console.log(JSON.stringify(await ask(JSON.parse(line))))
