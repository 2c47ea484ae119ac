// Package bootstrap is the shim's start verb: it finds or starts the server of a
// container's group and tells containerd where that listens.
//
// It is apart from package shim, and imports nothing above package syscall, because
// containerd waits for a whole process start here, and most of that time would
// be the package initialisers of what only the server needs (protobuf
// registration above all). Package first runs it before those. What the standard library
// would have offered (flags, JSON, protobuf, SHA-256) is written out here, as
// little of each as the verb needs, and tested against the real thing.
package bootstrap

import (
	"strconv"
	"syscall"
)

// DefaultSocketDir is where containerd's own shims have their sockets. It is short, since a
// socket's path may have 107 bytes and its name has 64.
const DefaultSocketDir = "/run/containerd/s"

// groupAnnotations choose the shim of a container, the first that is there; the names are
// those which containerd's runc shim heeds.
var groupAnnotations = [...]string{
	"io.containerd.runc.v2.group",
	"io.kubernetes.cri.sandbox-id",
}

// maxConfig is more than any config.json; Create refuses one that is longer.
const maxConfig = 16 << 20

// Start runs the start verb: args are the command line without the program, env the
// environment, input what containerd wrote to standard input, and tell what takes the answer. If that
// fails, there is nobody who would know of a new server, and it is ended.
func Start(args, env []string, input []byte, tell func(answer []byte) error) error {
	flags, err := ParseFlags(args)
	if err != nil {
		return err
	}
	if flags.Namespace == "" {
		return failure("shim namespace cannot be empty")
	}
	if flags.ID == "" {
		return failure("shim id cannot be empty")
	}
	req, err := parseRequest(flags, env, input)
	if err != nil {
		return err
	}
	bundle, err := syscall.Getwd()
	if err != nil {
		return wrap("get the bundle's path", err)
	}
	path, group := flags.Socket, ""
	if path == "" {
		group = bundleGroup(bundle, flags.ID)
		path = SocketPath(req.socketDir, flags.Address, flags.Namespace, group)
	}
	if len(path) > maxSocketPath {
		return failure("socket path " + path + " is longer than " + strconv.Itoa(maxSocketPath) + " bytes")
	}
	// containerd 1.7 finds the shim by this file after a restart, and the delete verb the socket, whatever
	// becomes of this process from here on.
	address := "unix://" + path
	if err := writeFile(bundle+"/address", address); err != nil {
		return err
	}
	fd, err := listen(path)
	if err != nil {
		return err
	}
	if fd >= 0 {
		debug, err := listenDebug(bundle, flags, req, group)
		if err != nil {
			syscall.Unlink(path)
			return err
		}
		pid, err := startServer(bundle, flags, req, env, fd, debug)
		syscall.Close(fd)
		if err != nil {
			debug.remove()
			syscall.Unlink(path)
			return err
		}
		if err = writeFile(bundle+"/shim.pid", strconv.Itoa(pid)); err == nil {
			err = tell(req.answer(address))
		}
		if err != nil {
			syscall.Kill(pid, syscall.SIGKILL)
			debug.remove()
			syscall.Unlink(path)
		}
		return err
	}
	return tell(req.answer(address))
}

// DebugAddress is the file of a bundle that says where its shim has its debug socket, if it has one.
const DebugAddress = "debug-address"

// A debugSocket is where a shim that logs everything answers ctr's pprof; its fd is -1 if there is none.
type debugSocket struct {
	path string
	fd   int
}

func (d debugSocket) remove() {
	if d.fd >= 0 {
		syscall.Unlink(d.path)
	}
}

// listenDebug makes it, where containerd's runc shim has it: ctr finds it there. Who comes to a shim that has one need not know.
func listenDebug(bundle string, flags *Flags, req *request, group string) (debugSocket, error) {
	d := debugSocket{flags.DebugSocket, -1}
	if d.path == "" {
		if group == "" || req.logLevel != "debug" && (req.logLevel != "" || !req.debug) {
			return d, nil
		}
		d.path = SocketPath(req.socketDir, flags.Address, flags.Namespace, group+"/debug")
	}
	// For the delete verb.
	err := writeFile(bundle+"/"+DebugAddress, "unix://"+d.path)
	if err == nil {
		d.fd, err = listen(d.path)
	}
	return d, err
}

// bundleGroup is the name that the containers of one shim have in common. A config.json that can't be
// read is no error here: Create will meet it too, and can say of which kind the error is.
func bundleGroup(bundle, id string) string {
	data, err := readFile(bundle+"/config.json", maxConfig)
	if err != nil {
		return id
	}
	var found [len(groupAnnotations)]string
	var has [len(groupAnnotations)]bool
	err = eachAnnotation(data, func(key, value string) {
		for i, name := range groupAnnotations {
			if key == name {
				found[i], has[i] = value, true
			}
		}
	})
	if err != nil {
		return id
	}
	for i := range found {
		if has[i] {
			return found[i]
		}
	}
	return id
}

// SocketPath is where the shim of a group listens: as containerd's own shims have it, a
// hash of what tells groups apart, containerd's address among it.
func SocketPath(dir, containerd, namespace, group string) string {
	if dir == "" {
		dir = DefaultSocketDir
	}
	return dir + "/" + hexSum(joinPath(containerd, namespace, group))
}

// A failure is an error that needs no package errors or fmt.
type failure string

func (f failure) Error() string { return string(f) }

type stepError struct {
	step string
	err  error
}

func wrap(step string, err error) error { return &stepError{step, err} }

func (e *stepError) Error() string { return e.step + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }
