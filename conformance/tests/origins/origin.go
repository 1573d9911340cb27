// An origin on net/http: says on standard output what it executes and which trailers it is sent, and answers 200. HTTP/1.1 on the first port, HTTP/2 without
// TLS on the second.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"strings"
)

func execute(w http.ResponseWriter, r *http.Request) {
	// As a file server or a router that cleans has it.
	resolved := path.Clean("/" + strings.TrimPrefix(r.URL.Path, "/"))
	var roles []string
	for name, values := range r.Header {
		if strings.ReplaceAll(strings.ToLower(name), "_", "-") == "x-role" {
			roles = append(roles, values...)
		}
	}
	said := fmt.Sprintf("seen\t%s\t%s\t%s\t%s\t%s\n", r.Method, r.RequestURI, resolved, r.Host, strings.Join(roles, "|"))
	// Values of headers are bytes; who reads lines reads text, and closes its end at anything else.
	fmt.Print(strings.ToValidUTF8(said, "\uFFFD"))
	io.Copy(io.Discard, r.Body)
	for name := range r.Trailer {
		fmt.Printf("behind\t%s\n", strings.ToLower(name))
	}
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
