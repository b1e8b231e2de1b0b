package keys

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"postern/internal/server/servertest"
)

// Keys of listeners: addresses, certificates, metrics, health (§2.2, §2.14).
var listenerExamples = []example{
	{keys: "address", config: `address: 127.0.0.1:@PORT@ # shown`, with: freePort, shows: func(w *world) error {
		return is(w.Main, "127.0.0.1:"+w.vars["PORT"])
	}},
	{keys: "http_redirect_addr", config: `http_redirect_addr: 127.0.0.1:@PORT@ # shown`, with: freePort, shows: func(w *world) error {
		req, _ := http.NewRequest("GET", "http://127.0.0.1:"+w.vars["PORT"]+"/x?y", nil)
		req.Host = "app.localhost"
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			return err
		}
		res.Body.Close()
		return is(res.Header.Get("Location"), "https://app.localhost/x?y")
	}},
	{keys: "insecure_server", config: `insecure_server: true # shown`, shows: func(w *world) error {
		return w.status(200, "http://app.localhost/")
	}},
	{keys: "certificates certificates[].cert certificates[].key", config: `
certificates: # shown
  - {cert: @DIR@/cert.pem, key: @DIR@/key.pem} # shown`, shows: servesOurs},
	{keys: "certificate_file certificate_key_file", config: `
certificate_file: @DIR@/cert.pem # shown
certificate_key_file: @DIR@/key.pem # shown`, shows: servesOurs},
	{keys: "certificate certificate_key", config: `
certificate: @CERT@ # shown
certificate_key: @KEY@ # shown`, shows: servesOurs},
	{keys: "health_check_addr", config: `health_check_addr: 127.0.0.1:@PORT@ # shown`, with: freePort, shows: func(w *world) error {
		page, err := fetch("http://127.0.0.1:"+w.vars["PORT"]+"/readyz", nil)
		return errors.Join(err, is(page.status, 200))
	}},
	{keys: "metrics_address", config: `metrics_address: 127.0.0.1:@PORT@ # shown`, with: freePort, shows: func(w *world) error {
		page, err := fetch("http://127.0.0.1:"+w.vars["PORT"]+"/metrics", nil)
		return errors.Join(err, is(page.status, 200), holds(page.body, "pomerium_config_checksum"))
	}},
	{keys: "metrics_basic_auth", config: `
metrics_address: 127.0.0.1:@PORT@
metrics_basic_auth: cHJvbTpzZWNyZXQ= # shown`, with: freePort, shows: func(w *world) error {
		at := "127.0.0.1:" + w.vars["PORT"] + "/metrics"
		stranger, err := fetch("http://"+at, nil)
		known, err2 := fetch("http://prom:secret@"+at, nil)
		return errors.Join(err, err2, is(stranger.status, 401), is(known.status, 200))
	}},
	{keys: "metrics_certificate metrics_certificate_key", config: `
metrics_address: 127.0.0.1:@PORT@
metrics_certificate: @CERT@ # shown
metrics_certificate_key: @KEY@ # shown`, with: freePort, shows: metricsOverTLS},
	{keys: "metrics_certificate_file metrics_certificate_key_file", config: `
metrics_address: 127.0.0.1:@PORT@
metrics_certificate_file: @DIR@/cert.pem # shown
metrics_certificate_key_file: @DIR@/key.pem # shown`, with: freePort, shows: metricsOverTLS},
	{keys: "metrics_client_ca", config: `
metrics_address: 127.0.0.1:@PORT@
metrics_certificate: @CERT@
metrics_certificate_key: @KEY@
metrics_client_ca: @CA@ # shown`, with: freePort, shows: metricsForClients},
	{keys: "metrics_client_ca_file", config: `
metrics_address: 127.0.0.1:@PORT@
metrics_certificate: @CERT@
metrics_certificate_key: @KEY@
metrics_client_ca_file: @DIR@/ca.pem # shown`, with: freePort, shows: metricsForClients},
	{keys: "health_check_systemd_disabled", config: `health_check_systemd_disabled: true # shown`,
		with: func(t *testing.T, o *servertest.Options) {
			dir, err := os.MkdirTemp("", "pn-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			o.Vars["NOTIFY"] = filepath.Join(dir, "notify")
			c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: o.Vars["NOTIFY"], Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			said := make(chan string, 100)
			go func() {
				b := make([]byte, 100)
				for {
					n, err := c.Read(b)
					if err != nil {
						return
					}
					said <- string(b[:n])
				}
			}()
			notified.Store(o.Vars["NOTIFY"], said)
			o.Env = append(o.Env, "NOTIFY_SOCKET="+o.Vars["NOTIFY"])
		},
		shows: func(w *world) error {
			w.Stop()
			v, _ := notified.Load(w.vars["NOTIFY"])
			select { // what was said was said before Stop returned
			case said := <-v.(chan string):
				return errors.New("systemd was told " + said)
			default:
				return nil
			}
		}},
	{keys: "data_dir", config: `data_dir: @DIR@/elsewhere # shown
control_address: @DIR@/c.sock
databroker_storage_type: file`, shows: func(w *world) error {
		entries, err := os.ReadDir(filepath.Join(w.Dir, "elsewhere"))
		if err == nil && len(entries) == 0 {
			err = errors.New("nothing is there")
		}
		return err
	}},
	{keys: "control_address", config: `control_address: @DIR@/here.sock # shown`, shows: func(w *world) error {
		info, err := os.Stat(filepath.Join(w.Dir, "here.sock"))
		if err != nil {
			return err
		}
		return is(info.Mode().Perm(), 0o600)
	}},
	{keys: "downstream_mtls downstream_mtls.ca", config: `
downstream_mtls: # shown
  ca: @CA@ # shown`, shows: asksForCertificate},
	{keys: "downstream_mtls.ca_file", config: `
downstream_mtls: # shown
  ca_file: @DIR@/ca.pem # shown`, shows: asksForCertificate},
	{keys: "downstream_mtls.crl", config: `
downstream_mtls:
  ca: @CA@
  crl: @CRL@ # shown`, shows: refusesRevoked},
	{keys: "downstream_mtls.crl_file", config: `
downstream_mtls:
  ca: @CA@
  crl_file: @DIR@/crl.pem # shown`, shows: refusesRevoked},
	{keys: "downstream_mtls.enforcement", config: `
downstream_mtls:
  ca: @CA@
  enforcement: reject_connection # shown`, shows: func(w *world) error {
		if page, err := w.Agent().Request("GET", app+"/.well-known/pomerium/jwks.json"); err == nil {
			return fmt.Errorf("a connection without certificate was served: %d", page.StatusCode)
		}
		page, err := w.withCertificate("client").Request("GET", user)
		if err != nil {
			return err
		}
		return is(page.StatusCode, 200)
	}},
	{keys: "downstream_mtls.match_subject_alt_names", config: `
downstream_mtls:
  ca: @CA@
  match_subject_alt_names: # shown
    - email: .*@else\.test # shown`, shows: func(w *world) error {
		page, err := w.withCertificate("client").Request("GET", user)
		if err != nil {
			return err
		}
		return is(page.StatusCode, 495)
	}},
	{keys: "downstream_mtls.max_verify_depth", config: `
downstream_mtls:
  ca: @CA@
  max_verify_depth: 2 # shown`, shows: func(w *world) error {
		page, err := w.withCertificate("deep").Request("GET", user)
		if err != nil {
			return err
		}
		return is(page.StatusCode, 200)
	}},
	{keys: "routes[].tls_downstream_client_ca", config: `
routes:
  - from: https://app.localhost
    to: @APP@
    allow_public_unauthenticated_access: true
    tls_downstream_client_ca: @CA@ # shown`, shows: asksForCertificate},
	{keys: "routes[].tls_downstream_client_ca_file", config: `
routes:
  - from: https://app.localhost
    to: @APP@
    allow_public_unauthenticated_access: true
    tls_downstream_client_ca_file: @DIR@/ca.pem # shown`, shows: asksForCertificate},
}

// servesOurs tells whether the listener shows the certificate made for us.
func servesOurs(w *world) error {
	c, err := tls.Dial("tcp", w.Main, &tls.Config{ServerName: "app.localhost", InsecureSkipVerify: true})
	if err != nil {
		return err
	}
	defer c.Close()
	return is(c.ConnectionState().PeerCertificates[0].Subject.CommonName, "server")
}

func asksForCertificate(w *world) error {
	page, err := w.Agent().Request("GET", user)
	if err != nil {
		return err
	}
	known, err := w.withCertificate("client").Request("GET", user)
	if err != nil {
		return err
	}
	return errors.Join(is(page.StatusCode, 495), is(known.StatusCode, 200))
}

func refusesRevoked(w *world) error {
	page, err := w.withCertificate("revoked").Request("GET", user)
	if err != nil {
		return err
	}
	known, err := w.withCertificate("client").Request("GET", user)
	if err != nil {
		return err
	}
	return errors.Join(is(page.StatusCode, 495), is(known.StatusCode, 200))
}

func metricsOverTLS(w *world) error {
	page, err := fetch("https://127.0.0.1:"+w.vars["PORT"]+"/metrics", &tls.Config{InsecureSkipVerify: true})
	return errors.Join(err, is(page.status, 200))
}

func metricsForClients(w *world) error {
	at := "https://127.0.0.1:" + w.vars["PORT"] + "/metrics"
	if _, err := fetch(at, &tls.Config{InsecureSkipVerify: true}); err == nil {
		return errors.New("a stranger was served")
	}
	page, err := fetch(at, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{certificate("client")}})
	return errors.Join(err, is(page.status, 200))
}

type fetched struct {
	status int
	body   string
}

func fetch(url string, t *tls.Config) (fetched, error) {
	tr := &http.Transport{TLSClientConfig: t, DisableKeepAlives: true}
	res, err := (&http.Client{Transport: tr}).Get(url)
	if err != nil {
		return fetched{}, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return fetched{res.StatusCode, string(b)}, err
}

func freePort(t *testing.T, o *servertest.Options) {
	port, err := servertest.Port()
	if err != nil {
		t.Fatal(err)
	}
	o.Vars["PORT"] = port
}
