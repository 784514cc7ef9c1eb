// Box is the one program in the image that the cluster brings along: the sandbox of every pod, and what a test needs to
// see that pods, volumes, Services and DNS work.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const usage = `usage: box pause | box write FILE TEXT | box serve ADDRESS FILE | box get URL`

func main() {
	log.SetFlags(0)
	arguments := os.Args[1:]
	switch {
	case len(arguments) == 1 && arguments[0] == "pause":
		pause()
	case len(arguments) == 3 && arguments[0] == "write":
		must(os.WriteFile(arguments[1], []byte(arguments[2]), 0o644))
	case len(arguments) == 3 && arguments[0] == "serve":
		serve(arguments[1], arguments[2])
	case len(arguments) == 2 && arguments[0] == "get":
		get(arguments[1])
	default:
		log.Fatal(usage)
	}
}

// pause holds a pod's namespaces and reaps what its containers orphan.
func pause() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for received := range signals {
		if received != syscall.SIGCHLD {
			return
		}
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 || err != nil {
				break
			}
		}
	}
}

// serve answers every request with the host's name and the file's text; without the file it answers 500.
func serve(address, file string) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		os.Exit(0)
	}()
	name, err := os.Hostname()
	must(err)
	log.Printf("serving on %s", address)
	must(http.ListenAndServe(address, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		text, err := os.ReadFile(file)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		// One answer a connection, or a client's keep-alive would hide the balancing.
		w.Header().Set("Connection", "close")
		fmt.Fprintf(w, "%s %s\n", name, text)
	})))
}

func get(url string) {
	client := http.Client{Timeout: 5 * time.Second}
	response, err := client.Get(url)
	must(err)
	defer response.Body.Close()
	_, err = io.Copy(os.Stdout, response.Body)
	must(err)
	if response.StatusCode != http.StatusOK {
		log.Fatal(response.Status)
	}
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
