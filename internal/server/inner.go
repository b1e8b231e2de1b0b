package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"

	"postern/internal/config"
	"postern/internal/telemetry"
)

// innerDoor is a listener for operators: health or metrics. Its socket stays
// bound while its address is the same; what answers is exchanged.
type innerDoor struct {
	name, addr string
	ln         net.Listener
	http       *http.Server
	current    atomic.Pointer[inner]
	conns      sync.Map // of net.Conn
}

// inner is what answers at an innerDoor.
type inner struct {
	name, key, addr string
	handler         http.Handler
	tls             *tls.Config // nil: without TLS
	secured         string      // what tls was made of
}

// ServeHTTP answers by the settings of the moment.
func (d *innerDoor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.current.Load().handler.ServeHTTP(w, r)
}

// Accept makes innerDoor a listener that speaks TLS as now configured.
func (d *innerDoor) Accept() (net.Conn, error) {
	c, err := d.ln.Accept()
	if t := d.current.Load().tls; t != nil && err == nil {
		return tls.Server(c, t), nil
	}
	return c, err
}

func (d *innerDoor) Close() error   { return d.ln.Close() }
func (d *innerDoor) Addr() net.Addr { return d.ln.Addr() }

// exchange lets w answer from now on. Where TLS differs, connections that were
// made under other terms end.
func (d *innerDoor) exchange(w *inner) {
	if before := d.current.Swap(w); before == nil || before.secured == w.secured {
		return
	}
	d.conns.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
}

// track knows the open connections.
func (d *innerDoor) track(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		d.conns.Store(c, nil)
	case http.StateClosed, http.StateHijacked:
		d.conns.Delete(c)
	}
}

// retire closes the address and lets answers under way finish.
func (d *innerDoor) retire() {
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if d.http.Shutdown(ctx) != nil {
		d.http.Close()
	}
}

// innerWanted lists what a configuration wants to answer operators with.
func (s *Server) innerWanted(cfg *config.Config) ([]*inner, error) {
	var out []*inner
	t := &cfg.Telemetry
	if t.HealthCheckAddr != "" {
		out = append(out, &inner{"health", "health_check_addr", t.HealthCheckAddr, s.health.Handler(), nil, ""})
	}
	if t.MetricsAddress != "" {
		auth, err := telemetry.ParseBasicAuth(t.MetricsBasicAuth)
		if err != nil {
			return nil, err
		}
		secure, err := metricsTLS(t)
		if err != nil {
			return nil, err
		}
		out = append(out, &inner{"metrics", "metrics_address", t.MetricsAddress, s.metrics.Handler(auth), secure,
			string(slices.Concat(t.MetricsCertificate, t.MetricsCertificateKey, t.MetricsClientCA))})
	}
	return out, nil
}

// planInner binds what is new among the listeners for operators. commit lets
// it serve, exchanges settings and closes what is no longer wanted; undo
// closes what was bound. d.mu is held by all three.
func (d *doors) planInner(s *Server, cfg *config.Config) (commit, undo func(), err error) {
	var added []*innerDoor
	undo = func() {
		for _, n := range added {
			n.ln.Close()
		}
	}
	wanted, err := s.innerWanted(cfg)
	if err != nil {
		return nil, undo, err
	}
	kept := map[*innerDoor]*inner{}
	for _, w := range wanted {
		at := slices.IndexFunc(d.others, func(o *innerDoor) bool { return o.name == w.name && o.addr == w.addr })
		if at >= 0 {
			kept[d.others[at]] = w
			continue
		}
		ln, err := d.listen(w.name, w.key, w.addr)
		if err != nil {
			return nil, undo, err
		}
		n := &innerDoor{name: w.name, addr: w.addr, ln: ln}
		n.http = telemetry.NewInternalServer(n, s.log)
		n.http.ConnState = n.track
		n.exchange(w)
		added = append(added, n)
	}
	return func() {
		var now []*innerDoor
		for _, o := range d.others {
			if w := kept[o]; w != nil {
				o.exchange(w)
				now = append(now, o)
				continue
			}
			delete(d.names, o.name)
			go o.retire()
		}
		for _, n := range added {
			d.names[n.name] = n.ln.Addr().String()
			go n.http.Serve(n)
		}
		d.others = append(now, added...)
	}, undo, nil
}

// internal binds health, metrics and control. Later changes of the first two
// are followed; control stays where it is.
func (d *doors) internal(s *Server, cfg *config.Config) error {
	d.mu.Lock()
	commit, undo, err := d.planInner(s, cfg)
	if err != nil {
		undo()
		d.mu.Unlock()
		return err
	}
	commit()
	d.opened = true
	d.mu.Unlock()
	if path := ControlPath(cfg); path != "" {
		c, err := startControl(s, path, s.heir.replaces(path))
		if err != nil {
			// Without a data directory of its own a second postern of the same
			// user must still start: the socket is a convenience there.
			if cfg.Control.ControlAddress == "" && cfg.Store.DataDir == "" {
				s.log.Warn("the control socket is off", "error", err)
				return nil
			}
			return err
		}
		d.control = c
		d.names["control"] = path
	}
	return nil
}

// metricsTLS are the settings of the metrics listener; nil is HTTP without TLS.
func metricsTLS(c *telemetry.Config) (*tls.Config, error) {
	if len(c.MetricsCertificate) == 0 {
		if len(c.MetricsClientCA) > 0 {
			return nil, errors.New("metrics_client_ca needs TLS: set metrics_certificate and metrics_certificate_key too")
		}
		return nil, nil
	}
	pair, err := tls.X509KeyPair(c.MetricsCertificate, c.MetricsCertificateKey)
	if err != nil {
		return nil, fmt.Errorf("metrics_certificate: %w; give a PEM certificate and its key", err)
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}
	if len(c.MetricsClientCA) > 0 {
		t.ClientCAs = x509.NewCertPool()
		if !t.ClientCAs.AppendCertsFromPEM(c.MetricsClientCA) {
			return nil, errors.New("metrics_client_ca holds no certificate: give PEM CA certificates")
		}
		t.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return t, nil
}
