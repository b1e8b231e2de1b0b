// Command scratch runs the real program under load for a long time and looks
// for scratches: streams that a change of the configuration closed, requests
// that failed, memory that stays.
//
//	scratch reload -program .bin/postern -reloads 1000 -websockets 8000 -grpc 500
//	scratch flat   -program .bin/postern -requests 10000000 -connections 100000
//
// Client (this process), proxy and upstream (this program again) are three
// processes, so that each has its own limit of open files and its own memory.
// The exit status is 1 if anything was scratched.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: scratch reload|flat|upstream [flags]; -h tells them")
		os.Exit(2)
	}
	var err error
	switch what, args := os.Args[1], os.Args[2:]; what {
	case "upstream":
		err = upstream(ctx)
	case "reload":
		err = reload(ctx, args)
	case "flat":
		err = flat(ctx, args)
	default:
		err = fmt.Errorf("%q is unknown: reload, flat or upstream", what)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "scratch:", err)
		os.Exit(1)
	}
}

func reload(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("reload", flag.ExitOnError)
	r := &reloads{}
	f.StringVar(&r.program, "program", "postern", "the program under test")
	f.IntVar(&r.reloads, "reloads", 1000, "changes of the configuration, at the largest size")
	sizes := f.String("websockets", "2000,4000,8000", "open WebSockets, one run for each size")
	f.IntVar(&r.grpc, "grpc", 500, "open gRPC streams")
	f.IntVar(&r.rate, "rate", 200, "requests per second meanwhile")
	f.IntVar(&r.few, "few", 60, "changes of the configuration at the smaller sizes")
	f.DurationVar(&r.pause, "pause", 0, "between two changes")
	f.DurationVar(&r.limit, "cut", 5*time.Second, "how soon a stream that is denied must be closed")
	f.Parse(args)
	for _, s := range strings.Split(*sizes, ",") {
		n, err := strconv.Atoi(s)
		if err != nil {
			return fmt.Errorf("-websockets: %q is not a number", s)
		}
		r.sizes = append(r.sizes, n)
	}
	return r.run(ctx)
}

func flat(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("flat", flag.ExitOnError)
	t := &flatness{}
	f.StringVar(&t.program, "program", "postern", "the program under test")
	f.IntVar(&t.requests, "requests", 10_000_000, "requests in all")
	f.IntVar(&t.connections, "connections", 100_000, "connections opened and closed meanwhile")
	f.IntVar(&t.workers, "workers", 32, "requests at once")
	f.IntVar(&t.reloads, "reloads", 50, "changes of the configuration meanwhile")
	f.Parse(args)
	return t.run(ctx)
}
