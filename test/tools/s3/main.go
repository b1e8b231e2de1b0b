// Command s3 is a server that speaks the protocol of Amazon S3, for tests: one
// bucket, kept in memory, that takes conditional writes. It prints where it
// listens.
//
//	s3 -listen 127.0.0.1:0 -bucket certificates
package main

import (
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address")
	bucket := flag.String("bucket", "certificates", "bucket to make")
	flag.Parse()
	backend := s3mem.New()
	if err := backend.CreateBucket(*bucket); err != nil {
		log.Fatal(err)
	}
	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(ln.Addr())
	log.Fatal(http.Serve(ln, gofakes3.New(backend).Server()))
}
