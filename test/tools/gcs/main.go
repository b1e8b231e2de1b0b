// Command gcs is a server that speaks the JSON API of Google Cloud Storage, for
// tests: one bucket, kept in memory. It prints where it listens.
package main

import (
	"fmt"
	"log"

	"github.com/fsouza/fake-gcs-server/fakestorage"
)

func main() {
	s, err := fakestorage.NewServerWithOptions(fakestorage.Options{Scheme: "http", Host: "127.0.0.1"})
	if err != nil {
		log.Fatal(err)
	}
	s.CreateBucketWithOpts(fakestorage.CreateBucketOpts{Name: "certificates"})
	fmt.Println(s.URL())
	select {}
}
