// Command rsys-keeper is a program to be checkpointed: it holds what its arguments name, uses it ten times a second, and
// says each time how often it has done so. It ends when something that it holds no longer works.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	var held []func(byte) error
	for i := 1; i < len(os.Args); i++ {
		hold, err := take(os.Args[i])
		check(os.Args[i], err)
		held = append(held, hold)
	}
	for n := 1; ; n++ {
		for i, hold := range held {
			check(os.Args[1+i], hold(byte(n)))
		}
		fmt.Println(n)
		time.Sleep(100 * time.Millisecond)
	}
}

func check(what string, err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, what, err)
		os.Exit(3)
	}
}

func take(what string) (func(byte) error, error) {
	kind, path := what, ""
	for i := range what {
		if what[i] == ':' {
			kind, path = what[:i], what[i+1:]
			break
		}
	}
	switch kind {
	case "tcp": // a connection, both of whose ends are here
		var lc net.ListenConfig
		lc.SetMultipathTCP(false) // which criu can't dump
		l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		near, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return nil, err
		}
		far, err := l.Accept()
		return func(b byte) error { return echo(near, far, b) }, err
	case "unix": // a socket that is connected to one outside
		conn, err := net.Dial("unixgram", path)
		return func(b byte) error { _, err := conn.Write([]byte{b}); return err }, err
	case "lock":
		f, err := os.Create(path)
		if err == nil {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		}
		return func(byte) error {
			other, err := os.Open(path)
			if err != nil {
				return err
			}
			defer other.Close()
			if err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
				return fmt.Errorf("the lock is not held: %v", err)
			}
			_ = f
			return nil
		}, err
	case "deleted": // an open file that is nowhere else
		f, err := os.Create(path)
		if err == nil {
			err = os.Remove(path)
		}
		return func(b byte) error {
			if _, err := f.WriteAt([]byte{b}, int64(b)); err != nil {
				return err
			}
			got := make([]byte, 1)
			if _, err := f.ReadAt(got, int64(b-1)); err != nil || b > 1 && got[0] != b-1 {
				return fmt.Errorf("%v at %d: %v", got, b-1, err)
			}
			return nil
		}, err
	case "fifo": // what is written to one is read from it
		if err := unix.Mkfifo(path, 0o600); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		return func(b byte) error { return echo(f, f, b) }, err
	case "pipe":
		r, w, err := os.Pipe()
		return func(b byte) error { return echo(w, r, b) }, err
	}
	return nil, fmt.Errorf("what is %q?", what)
}

func echo(w interface{ Write([]byte) (int, error) }, r interface{ Read([]byte) (int, error) }, b byte) error {
	if _, err := w.Write([]byte{b}); err != nil {
		return err
	}
	got := make([]byte, 1)
	if _, err := r.Read(got); err != nil || got[0] != b {
		return fmt.Errorf("got %d, not %d: %v", got[0], b, err)
	}
	return nil
}
