package main

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// The WebSockets here are RFC 6455 with short frames only, and without buffers,
// so that the client can hold many.

func acceptKey(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

const wsKey = "dGhlIHNhbXBsZSBub25jZQ=="

// upgrade opens a WebSocket on a connection.
func upgrade(conn net.Conn, authority, path string) error {
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	defer conn.SetDeadline(time.Time{})
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n",
		path, authority, wsKey)
	if err != nil {
		return err
	}
	var head strings.Builder // byte by byte: what follows the head is not ours to keep
	for b := make([]byte, 1); !strings.HasSuffix(head.String(), "\r\n\r\n"); {
		if _, err := io.ReadFull(conn, b); err != nil {
			return err
		}
		head.WriteByte(b[0])
		if head.Len() > 16<<10 {
			return errors.New("an endless head")
		}
	}
	res, err := http.ReadResponse(bufio.NewReader(strings.NewReader(head.String())), nil)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusSwitchingProtocols || res.Header.Get("Sec-WebSocket-Accept") != acceptKey(wsKey) {
		return fmt.Errorf("the WebSocket was refused: %s", res.Status)
	}
	return nil
}

func readFrame(r io.Reader, b *[2 + 4 + 125]byte) (op byte, text []byte, err error) {
	if _, err := io.ReadFull(r, b[:2]); err != nil {
		return 0, nil, err
	}
	op = b[0] & 15
	n, masked := int(b[1]&0x7f), b[1]&0x80 != 0
	if n > 125 {
		return 0, nil, errors.New("a long frame")
	}
	if masked {
		if _, err := io.ReadFull(r, b[2:6]); err != nil {
			return 0, nil, err
		}
	}
	text = b[6 : 6+n]
	if _, err := io.ReadFull(r, text); err != nil {
		return 0, nil, err
	}
	if masked {
		for i := range text {
			text[i] ^= b[2+i%4]
		}
	}
	return op, text, nil
}

func writeFrame(w io.Writer, op byte, text []byte, mask bool) error {
	b := make([]byte, 0, 2+4+125)
	b = append(b, 0x80|op, byte(len(text)))
	if mask {
		b[1] |= 0x80
		b = append(b, 1, 2, 3, 4)
		for i, c := range text {
			b = append(b, c^byte(1+i%4))
		}
	} else {
		b = append(b, text...)
	}
	_, err := w.Write(b)
	return err
}
