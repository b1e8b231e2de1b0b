package authz

import "testing"

func TestClientOf(t *testing.T) {
	for _, tt := range []struct {
		headers []string
		want    Client
	}{
		{nil, ClientBrowser},
		{[]string{"Accept", "text/html,application/xhtml+xml,*/*;q=0.8"}, ClientBrowser},
		{[]string{"Accept", "application/json"}, ClientJSON},
		{[]string{"Accept", "application/json, text/html;q=0.5"}, ClientJSON},
		{[]string{"Accept", "text/html, application/json"}, ClientBrowser},
		{[]string{"Accept", "text/plain"}, ClientBrowser},
		{[]string{"Content-Type", "application/grpc"}, ClientGRPC},
		{[]string{"Content-Type", "application/grpc+proto; x=y"}, ClientGRPC},
		{[]string{"Content-Type", "application/grpc-web-text"}, ClientGRPCWeb},
		{[]string{"Content-Type", "Application/GRPC-Web+proto"}, ClientGRPCWeb},
		{[]string{"Content-Type", "application/grpcx"}, ClientBrowser},
		{[]string{"User-Agent", "kubectl/v1.30 (linux/amd64) kubernetes/abc", "Accept", "application/json"}, ClientKubernetes},
	} {
		if got := ClientOf(request("GET", "https://a/", tt.headers...)); got != tt.want {
			t.Errorf("%v: got %d, want %d", tt.headers, got, tt.want)
		}
	}
	for status, want := range map[int]int{401: 16, 403: 7, 404: 12, 400: 13, 429: 14, 502: 14, 503: 14, 504: 14, 500: 2, 450: 2} {
		if got := GRPCStatus(status); got != want {
			t.Errorf("gRPC status of %d: %d, want %d", status, got, want)
		}
	}
}
