package netdev

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inNewNamespace runs f in a new network namespace, on a thread that ends with it.
func inNewNamespace(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Skipf("unshare: %v", err)
	}
}

func TestADeviceMovesWithItsAddresses(t *testing.T) {
	var from, to, ns *os.File
	var err error
	ip := func(args ...string) string {
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			t.Errorf("ip %q: %v: %s", args, err, out)
		}
		return string(out)
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("no ip")
	}
	inNewNamespace(t, func() {
		if to, err = Socket(); err == nil {
			ns, err = os.Open("/proc/thread-self/ns/net")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	defer ns.Close()
	inNewNamespace(t, func() {
		ip("link", "add", "name", "dev0", "type", "veth", "peer", "name", "dev1")
		ip("addr", "add", "10.1.2.3/24", "dev", "dev0")
		if from, err = Socket(); err == nil {
			err = Move(from, to, ns, "dev0", "eth%d")
			from.Close()
		}
		if got := ip("-o", "link"); strings.Contains(got, " dev0@") {
			t.Errorf("left: %s", got)
		}
		if _, err := exec.Command("ip", "link", "show", "dev0").Output(); err == nil {
			t.Error("it is still there")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := newConn(to)
	if err != nil {
		t.Fatal(err)
	}
	l, err := c.linkByName("eth0")
	if err != nil || !l.up {
		t.Fatalf("%+v, %v", l, err)
	}
	if list, err := c.addresses(l.index); err != nil || len(list) != 1 || list[0].String() != "0a010203/24" {
		t.Errorf("addresses %v, %v", list, err)
	}
	if _, err := c.linkByName("none"); err != unix.ENODEV {
		t.Errorf("got %v", err)
	}
}

func FuzzWhatTheKernelSaysIsReadWithoutHarm(f *testing.F) {
	f.Add([]byte{8, 0, 1, 0, 1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, b []byte) {
		parseAttrs(b)
		parseLink(message{unix.RTM_NEWLINK, b})
		_ = errno(b)
	})
}
