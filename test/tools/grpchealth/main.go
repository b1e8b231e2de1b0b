// Command grpchealth serves grpc.health.v1.Health by google.golang.org/grpc.
// It prints its address, then reads lines "NAME STATUS", such as
// "app NOT_SERVING"; "-" stands for the server as a whole.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address")
	flag.Parse()
	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	service, server := health.NewServer(), grpc.NewServer()
	healthpb.RegisterHealthServer(server, service)
	go func() {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			name, status, _ := strings.Cut(lines.Text(), " ")
			if name == "-" {
				name = ""
			}
			service.SetServingStatus(name, healthpb.HealthCheckResponse_ServingStatus(healthpb.HealthCheckResponse_ServingStatus_value[status]))
			fmt.Println(lines.Text())
		}
		server.Stop() // whoever started this is gone
	}()
	fmt.Println(ln.Addr())
	if err := server.Serve(ln); err != nil {
		log.Fatal(err)
	}
}
