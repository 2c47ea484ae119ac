package rsys

import (
	"bytes"
	"unsafe"
)

// The server is the machine code that makes a process a task. It is
// position independent and needs nothing but a stack of some hundred bytes;
// this binary carries it but never runs it. The sources are server_amd64.s and
// server_arm64.s; they and this file hold the layouts together.
//
// It has one entry. With a channel in the first argument's register it
// serves it: it writes eight bytes, the hello, and from then on reads
// requests of seven 64-bit words
//
//	nr, arg 0 … arg 5
//
// does that system call and writes its return value, one word. With nr −1 the
// request is a program: arg 0 points to an array of steps and arg 1 is their number; the
// response is how many were left undone, from the one that failed on; 0 or less says that all is done.
// When the channel is closed the server exits, with status exitServer.
//
// A system call that returns on another stack than it was made on has made a
// child. The child finds a function and its three arguments on top of its stack, and
// jumps: that is the trampoline. The server as that function, with a new
// channel, makes the child a task; its second argument, unless 0, is the address of a robust futex that is
// to be registered. With a third, the address of a request, the child serves nobody: it runs that request's program and exits.
//
// With all registers zero, as the kernel starts a program, it is the stub: it
// receives four descriptors on descriptor 3, or on a connection to the socket whose path
// is in its environment as RSYS_STUB_SOCKET, describes itself, and serves. See package stub.

// Layout of a step in memory: twelve words.
const (
	stepNr      = 0
	stepArgs    = 8
	stepLoads   = 56 // bit i: argument i is the address of the word to use; bit 8+i: of the int32
	stepPolicy  = 64 // a call.Policy
	stepSkipOK  = 72 // uint32: steps to skip after a success
	stepSkipErr = 76 // uint32: after a tolerated error
	stepResult  = 80
	stepTime    = 88 // the time stamp counter when it had returned; ticks, not seconds
	stepSize    = 96
)

const (
	requestProgram = -1 // as the request's nr
	requestSize    = 7 * 8
	responseSize   = 8
)

// exitServer is the exit status of a server that ends by itself.
const exitServer = 125

// notRun is a step's result before it has one. No system call returns it.
const notRun = -1 << 63

var serverEnd = []byte("--rsys----end---")

// serverAddress is where the server lies in this binary, to be read only.
func serverAddress() uintptr

// ServerCode is the server's machine code, for this architecture. Its entry
// is its first byte.
func ServerCode() []byte { return codeAt(serverAddress()) }

// codeAt is the machine code at an address of this binary, up to its end mark.
func codeAt(address uintptr) []byte {
	const most = 4096
	code := unsafe.Slice((*byte)(unsafe.Add(nil, address)), most)
	end := bytes.Index(code, serverEnd)
	if end < 0 {
		panic("rsys: code without an end mark")
	}
	return bytes.Clone(code[:end])
}
