package proxy

import (
	"net/http"
	"time"

	"github.com/google/uuid"

	"postern/internal/telemetry"
)

// LogRefused makes the ServeOptions.OnRefused that gives requests which the
// guard turned away a request id and a line in the access log. Of such a
// request only the peer is certain.
func LogRefused(current func() *Generation) func(*ConnInfo, *HeadError) string {
	return func(info *ConnInfo, err *HeadError) string {
		id := uuid.NewString()
		g := current()
		if g == nil || g.AccessLog == nil {
			return id
		}
		e := &telemetry.AccessEntry{
			Time: time.Now(), RequestID: id, ResponseCode: err.Status, ResponseCodeDetails: "http1.codec_error",
			Header: func(string) string { return "" },
		}
		if err.Status == http.StatusRequestTimeout {
			e.ResponseCodeDetails = "request_header_timeout"
		}
		if info != nil {
			e.IP = info.Direct.Addr()
		}
		g.AccessLog(e)
		return id
	}
}
