package certs

import (
	"crypto/sha256"
	"crypto/tls"
)

// tickets holds the keys that session tickets are sealed with, one lot for each
// thing that clients may be asked for. It outlives generations, so that a
// change of routes costs no handshakes.
var tickets interned[tls.Config]

// showedNothing marks the ticket of a client that was asked for a certificate
// and had none.
const showedNothing = "postern: no certificate"

// sealTickets gives a configuration the ticket keys of what it asks for. A
// session is resumed only where the same was asked of the client: one begun
// without a certificate, because its name or an earlier generation asked for
// none, would go on without. (crypto/tls itself seals tickets with the keys of
// the listener's outermost configuration.) And who had no certificate is asked
// again: it may have got one.
func sealTickets(t *tls.Config, ask *asking) {
	h := sha256.New()
	h.Write(ask.key[:])
	h.Write([]byte{byte(t.ClientAuth)})
	for _, p := range t.NextProtos {
		h.Write([]byte(p + "\x00"))
	}
	var key sumKey
	h.Sum(key[:0])
	// It rotates its keys by itself.
	keys, _ := tickets.get(key, func() (*tls.Config, error) { return &tls.Config{}, nil }) // never fails
	asked := !ask.none()
	t.WrapSession = func(state tls.ConnectionState, session *tls.SessionState) ([]byte, error) {
		if asked && len(state.PeerCertificates) == 0 {
			session.Extra = append(session.Extra, []byte(showedNothing))
		}
		return keys.EncryptTicket(state, session)
	}
	t.UnwrapSession = func(identity []byte, state tls.ConnectionState) (*tls.SessionState, error) {
		session, err := keys.DecryptTicket(identity, state)
		if session == nil || err != nil {
			return nil, err
		}
		for _, e := range session.Extra {
			if asked && string(e) == showedNothing {
				return nil, nil
			}
		}
		return session, nil
	}
}
