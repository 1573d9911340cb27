// An origin on net/http: says on standard output what it executes, and answers 200. HTTP/1.1 on the first port, HTTP/2 without
// TLS on the second.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path"
	"strings"
)

func execute(w http.ResponseWriter, r *http.Request) {
	// As a file server or a router that cleans has it.
	resolved := path.Clean("/" + strings.TrimPrefix(r.URL.Path, "/"))
	fmt.Printf("seen\t%s\t%s\t%s\n", r.Method, r.RequestURI, resolved)
}

func main() {
	var plain, h2 http.Protocols
	plain.SetHTTP1(true)
	h2.SetUnencryptedHTTP2(true)
	servers := []*http.Server{
		{Handler: http.HandlerFunc(execute), Protocols: &plain},
		{Handler: http.HandlerFunc(execute), Protocols: &h2},
	}
	ended := make(chan error)
	for index, server := range servers {
		listener, err := net.Listen("tcp", "[::]:"+os.Args[1+index])
		if err != nil {
			panic(err)
		}
		go func() { ended <- server.Serve(listener) }()
	}
	fmt.Println("serving")
	panic(<-ended)
}
