// A certified OpenID provider for tests (npm oidc-provider), with users read
// from a JSON file at every sign-in and refresh.
//   node provider.mjs --users users.json --redirects URL[,URL] [--port N] [--ttl SECONDS]
// Prints its issuer when it listens.
import http from 'node:http'
import fs from 'node:fs'
import { parseArgs } from 'node:util'
import Provider from 'oidc-provider'

const { values: o } = parseArgs({ options: {
  port: { type: 'string', default: '0' }, users: { type: 'string' }, redirects: { type: 'string' },
  logout: { type: 'string', default: '' }, client: { type: 'string', default: 'postern' },
  secret: { type: 'string', default: 'postern-test-secret' }, ttl: { type: 'string', default: '3600' } } })
const users = () => JSON.parse(fs.readFileSync(o.users))
const byId = id => users().find(u => u.ID === id && !u.Disabled)
const on = { enabled: true }

const server = http.createServer()
server.listen(Number(o.port), '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`
  const provider = new Provider(issuer, {
    clients: [{ client_id: o.client, client_secret: o.secret, redirect_uris: o.redirects.split(','),
      response_types: ['code'], grant_types: ['authorization_code', 'refresh_token'],
      post_logout_redirect_uris: o.logout ? o.logout.split(',') : [] }],
    scopes: ['openid', 'offline_access', 'email', 'profile', 'groups'],
    claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name'], groups: ['groups'] },
    conformIdTokenClaims: false,
    findAccount: (_, sub) => {
      const u = byId(sub)
      return u && { accountId: sub, claims: async () => ({ sub, email: u.Email, email_verified: !u.Unverified, name: u.Name, groups: u.Groups }) }
    },
    fetch: (u, p) => { delete p.dispatcher; return globalThis.fetch(u, p) },
    issueRefreshToken: async () => true,
    rotateRefreshToken: true,
    ttl: { AccessToken: Number(o.ttl), IdToken: Number(o.ttl), Grant: 86400, Session: 86400, Interaction: 600, RefreshToken: 86400 },
    cookies: { keys: ['test-only'] },
    pkce: { required: () => true },
    interactions: { url: (_, i) => `/interaction/${i.uid}` },
    features: { devInteractions: { enabled: false }, rpInitiatedLogout: on, revocation: on, introspection: on },
  })
  // One line per grant, so that a test can count renewals.
  provider.on("grant.success", ctx => console.log("granted", ctx.oidc.params.grant_type))
  provider.on("grant.error", (ctx, e) => console.log("refused", ctx.oidc.params?.grant_type, e.message))
  const serve = provider.callback()
  server.on('request', async (req, res) => {
    const m = new URL(req.url, issuer).pathname.match(/^\/interaction\/([^/]+)$/)
    if (!m) return serve(req, res)
    try {
      const { prompt, params, grantId, session } = await provider.interactionDetails(req, res)
      if (prompt.name === 'login' && req.method === 'GET') {
        res.setHeader('content-type', 'text/html')
        return res.end('<!doctype html><title>Test provider</title><form method="post"><input name="login"><input name="password" type="password"><button>Sign in</button></form>')
      }
      if (prompt.name === 'login') {
        let body = ''
        for await (const c of req) body += c
        const f = new URLSearchParams(body)
        const u = users().find(u => u.Email === f.get('login') && u.Password === f.get('password') && !u.Disabled)
        if (!u) { res.statusCode = 401; return res.end('wrong email or password') }
        return await provider.interactionFinished(req, res, { login: { accountId: u.ID } }, { mergeWithLastSubmission: false })
      }
      const grant = grantId ? await provider.Grant.find(grantId) : new provider.Grant({ accountId: session.accountId, clientId: params.client_id })
      if (prompt.details.missingOIDCScope) grant.addOIDCScope(prompt.details.missingOIDCScope.join(' '))
      if (prompt.details.missingOIDCClaims) grant.addOIDCClaims(prompt.details.missingOIDCClaims)
      return await provider.interactionFinished(req, res, { consent: { grantId: await grant.save() } }, { mergeWithLastSubmission: true })
    } catch (e) { res.statusCode = 500; res.end(String(e)) }
  })
  console.log(issuer)
})
