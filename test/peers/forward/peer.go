// Stand-ins for examples/forward, in Go: "peer server" accepts TCP connections
// and sends them on, "peer forward" receives and answers them.
//
// Environment: HOST, PORT, FORWARD_SOCKET. Every event is one JSON line on
// stdout. The forwarder closes the Unix connection after it has answered.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
)

func setting(name, otherwise string) string {
	if value, found := os.LookupEnv(name); found {
		return value
	}
	return otherwise
}

var path = setting("FORWARD_SOCKET", "/tmp/forward_demo.sock")
var address = net.JoinHostPort(setting("HOST", "127.0.0.1"), setting("PORT", "8080"))

func report(event string, more map[string]any) {
	line := map[string]any{"event": event, "pid": os.Getpid(), "runtime": "go"}
	for name, value := range more {
		line[name] = value
	}
	text, _ := json.Marshal(line)
	fmt.Println(string(text))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func answer(connection net.Conn, text string) {
	defer connection.Close()
	request := make([]byte, 1024)
	size, err := connection.Read(request)
	if err != nil {
		return
	}
	fmt.Fprint(connection, text)
	remote := connection.RemoteAddr().String()
	report("answered", map[string]any{"request": string(request[:size]), "answer": text, "remote": remote})
}

func handOver(connection *net.TCPConn) error {
	channel, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer channel.Close()
	file, err := connection.File()
	if err != nil {
		return err
	}
	defer file.Close()
	_, _, err = channel.(*net.UnixConn).WriteMsgUnix([]byte("forward"), syscall.UnixRights(int(file.Fd())), nil)
	return err
}

func server() {
	listener, err := net.Listen("tcp", address)
	fail(err)
	report("open", map[string]any{"address": listener.Addr().String()})
	for {
		connection, err := listener.Accept()
		fail(err)
		go func() {
			if handOver(connection.(*net.TCPConn)) != nil {
				answer(connection, "process by server")
			}
			connection.Close()
		}()
	}
}

func receive(channel *net.UnixConn) (net.Conn, error) {
	word, control := make([]byte, 64), make([]byte, syscall.CmsgSpace(4))
	size, controlSize, _, _, err := channel.ReadMsgUnix(word, control)
	if err != nil {
		return nil, err
	}
	messages, err := syscall.ParseSocketControlMessage(control[:controlSize])
	if err != nil || len(messages) != 1 || string(word[:size]) != "forward" {
		return nil, errors.New("expected the word forward and a descriptor")
	}
	descriptors, err := syscall.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(descriptors[0]), "connection")
	defer file.Close()
	return net.FileConn(file)
}

func forward() {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	fail(err)
	report("open", map[string]any{"path": path})
	for {
		channel, err := listener.AcceptUnix()
		fail(err)
		go func() {
			defer channel.Close()
			connection, err := receive(channel)
			if err != nil {
				report("refused", map[string]any{"message": err.Error()})
				return
			}
			answer(connection, "process by forward")
		}()
	}
}

func main() {
	if os.Args[1] == "server" {
		server()
	} else {
		forward()
	}
}
