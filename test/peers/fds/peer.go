// Descriptors over a Unix socket with syscall.UnixRights, WriteMsgUnix and
// ReadMsgUnix:
//
//	peer send|receive stream|seqpacket|dgram PATH BATCHES
//
// What it sends and checks is in peer.py beside it; its descriptors are sockets
// whose other end has closed.
package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const most = 253

var networks = map[string]string{"stream": "unix", "seqpacket": "unixpacket", "dgram": "unixgram"}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func expect(isSo bool, format string, args ...any) {
	if !isSo {
		must(fmt.Errorf(format, args...))
	}
}

func holding(number int) int {
	ends, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	must(err)
	_, err = syscall.Write(ends[0], []byte(strconv.Itoa(number)))
	must(err)
	must(syscall.Close(ends[0]))
	return ends[1]
}

func send(peer *net.UnixConn, to *net.UnixAddr, first, size int) {
	data := make([]byte, size)
	numbers := make([]int, size)
	for i := range data {
		data[i] = byte(first + i)
		numbers[i] = holding(first + i)
	}
	written, controlWritten, err := peer.WriteMsgUnix(data, syscall.UnixRights(numbers...), to)
	must(err)
	expect(written == size && controlWritten == syscall.CmsgSpace(4*size), "wrote %d and %d", written, controlWritten)
	for _, number := range numbers {
		must(syscall.Close(number))
	}
}

func receive(peer *net.UnixConn, first, size int) {
	data := make([]byte, 4096)
	control := make([]byte, syscall.CmsgSpace(4*most))
	read, controlRead, flags, _, err := peer.ReadMsgUnix(data, control)
	must(err)
	expect(read == size, "%d bytes at %d, expected %d", read, first, size)
	expect(flags&(syscall.MSG_TRUNC|syscall.MSG_CTRUNC) == 0, "flags %x", flags)
	messages, err := syscall.ParseSocketControlMessage(control[:controlRead])
	must(err)
	expect(len(messages) == 1, "%d control messages", len(messages))
	numbers, err := syscall.ParseUnixRights(&messages[0])
	must(err)
	expect(len(numbers) == size, "%d descriptors at %d, expected %d", len(numbers), first, size)
	text := make([]byte, 16)
	for i, number := range numbers {
		expect(data[i] == byte(first+i), "another byte at %d", first+i)
		count, err := syscall.Read(number, text)
		must(err)
		expect(string(text[:count]) == strconv.Itoa(first+i), "descriptor %d holds something else", first+i)
		must(syscall.Close(number))
	}
}

// WriteMsgUnix takes an address for datagrams and none otherwise.
func connect(kind string, address *net.UnixAddr) (*net.UnixConn, *net.UnixAddr) {
	if kind == "dgram" {
		peer, err := net.ListenUnixgram(networks[kind], &net.UnixAddr{Net: networks[kind]})
		must(err)
		return peer, address
	}
	peer, err := net.DialUnix(networks[kind], nil, address)
	must(err)
	return peer, nil
}

func listen(kind string, address *net.UnixAddr) *net.UnixConn {
	if kind == "dgram" {
		peer, err := net.ListenUnixgram(networks[kind], address)
		must(err)
		fmt.Println("ready")
		return peer
	}
	listener, err := net.ListenUnix(networks[kind], address)
	must(err)
	fmt.Println("ready")
	peer, err := listener.AcceptUnix()
	must(err)
	return peer
}

func main() {
	role, kind, path, plan := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	time.AfterFunc(60*time.Second, func() { must(fmt.Errorf("not done within 60 s")) })
	address := &net.UnixAddr{Name: path, Net: networks[kind]}
	var peer *net.UnixConn
	var to *net.UnixAddr
	if role == "send" {
		peer, to = connect(kind, address)
	} else {
		peer = listen(kind, address)
	}
	total := 0
	for _, part := range strings.Split(plan, ",") {
		var count, size int
		_, err := fmt.Sscanf(part, "%dx%d", &count, &size)
		must(err)
		for ; count > 0; count-- {
			if role == "send" {
				send(peer, to, total, size)
			} else {
				receive(peer, total, size)
			}
			total += size
		}
	}
	if role == "send" {
		must(peer.Close())
		return
	}
	if kind != "dgram" {
		count, err := peer.Read(make([]byte, 1))
		expect(count == 0 && err != nil, "something came after the last message")
	}
	fmt.Println(total, "descriptors")
}
