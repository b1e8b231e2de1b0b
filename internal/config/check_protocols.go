package config

// checkProtocols looks at how the keys of HTTP versions go together.
func (d *decoder) checkProtocols() {
	p := &d.cfg.Proxy
	if p.CodecType == "http3" && p.InsecureServer {
		d.bad("codec_type", "http3 is asked for together with insecure_server, and HTTP/3 is never without TLS",
			"remove insecure_server, or choose codec_type auto and let what terminates TLS speak HTTP/3")
	}
	if p.CodecType == "http3" && p.UseProxyProtocol {
		d.problem(LevelWarning, KindInvalid, "codec_type", "there is no PROXY header over UDP, so that clients of HTTP/3 behind a balancer all have the balancer's address",
			"let the balancer pass UDP on with the addresses of clients, or choose codec_type auto")
	}
	if p.HTTP3AdvertisePort > 65535 {
		d.bad("http3_advertise_port", "the port is above 65535", "write the UDP port that clients reach, or remove the key")
	}
	if d.isSet("http3_advertise_port") && p.HTTP3AdvertisePort != 0 && p.CodecType != "http3" {
		d.problem(LevelWarning, KindInvalid, "http3_advertise_port", "the port is not advertised, because codec_type is not http3", "set codec_type: http3, or remove the key")
	}
}
