package integration

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/integration/harness"
)

// The labels of one container's processes and files, as CRI makes them.
const (
	processLabel = "system_u:system_r:container_t:s0:c1,c2"
	fileLabel    = "system_u:object_r:container_file_t:s0:c1,c2"
)

// tellKeyringsLabel is the argument by which this program, run in a container, tells the label of its session keyring.
const tellKeyringsLabel = "rsys-test-keyrings-label"

func init() {
	if len(os.Args) != 2 || os.Args[1] != tellKeyringsLabel {
		return
	}
	buf := make([]byte, 4096)
	session := unix.KEY_SPEC_SESSION_KEYRING
	n, _, errno := unix.Syscall6(unix.SYS_KEYCTL, unix.KEYCTL_GET_SECURITY, uintptr(session), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0, 0)
	if errno != 0 {
		_, _ = os.Stdout.WriteString(errno.Error() + "\n")
		os.Exit(1)
	}
	_, _ = os.Stdout.WriteString(unix.ByteSliceToString(buf[:n]) + "\n")
	os.Exit(0)
}

// withSELinux begins a test that needs it.
func withSELinux(t *testing.T) *harness.Env {
	t.Helper()
	enforcing, err := os.ReadFile("/sys/fs/selinux/enforce")
	if err != nil {
		t.Skip("SELinux is not enabled on this host; hack/vm-test runs this where it is")
	}
	if strings.TrimSpace(string(enforcing)) != "1" {
		t.Skip("SELinux does not enforce its policy on this host; hack/vm-test runs this where it does")
	}
	return start(t)
}

// labels sets the config's labels; "" leaves one out.
func labels(process, files string) oci.SpecOpts {
	return change(func(s *oci.Spec) { s.Process.SelinuxLabel, s.Linux.MountLabel = process, files })
}

// labelOf is a file's as the kernel has it.
func labelOf(e *harness.Env, path string) string {
	e.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Lgetxattr(path, "security.selinux", buf)
	e.Must(err, "label of %s", path)
	return strings.TrimRight(string(buf[:n]), "\x00")
}

func TestTheSELinuxLabelIsTheConfigs(t *testing.T) {
	for _, noNew := range []bool{true, false} {
		t.Run("noNewPrivileges="+strconv.FormatBool(noNew), func(t *testing.T) {
			e := withSELinux(t)
			c := e.Container(harness.Sh("cat /proc/self/attr/current; echo", "sleep 3600"), labels(processLabel, fileLabel),
				change(func(s *oci.Spec) { s.Process.NoNewPrivileges = noNew })).Run()
			e.Eventually("it tells", func() bool { return strings.Contains(c.IO.Stdout.String(), "\n") })
			if got := label(c.IO.Stdout.String()); got != processLabel {
				t.Errorf("inside, its label is %q", got)
			}
			data, err := os.ReadFile("/proc/" + strconv.Itoa(int(c.Task.Pid())) + "/attr/current")
			e.Must(err, "read")
			if got := label(string(data)); got != processLabel {
				t.Errorf("the kernel has it as %q", got)
			}
			look := harness.Sh("cat /proc/self/attr/current; echo", "cat /proc/self/attr/exec; echo .")
			if got := c.RunExec(look...); label(got.Stdout) != processLabel || !strings.HasSuffix(got.Stdout, "\n.\n") {
				t.Errorf("an exec, which is told nothing: %+v, want the container's, and none for what it executes", got)
			}
			const other = "system_u:system_r:container_t:s0:c1.c3" // may use all that the container may; as the kernel writes c1,c2,c3
			x := c.Exec(nil, c.Process(look, func(p *specs.Process) { p.SelinuxLabel = other })).StartExec()
			if got := x.WaitExec(); label(got.Stdout) != other {
				t.Errorf("an exec with a label of its own: %+v", got)
			}
		})
	}
}

// label is the first line, without the zero byte that the kernel ends a label with.
func label(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return strings.Trim(line, "\x00")
}

func TestTheMountLabelIsThatOfAllFileSystemsThatAreMade(t *testing.T) {
	e := withSELinux(t)
	c := e.Container(harness.Sleep(), labels(processLabel, fileLabel), withMount("tmpfs", "/fresh", "tmpfs"),
		withMount("tmpfs", "/own", "tmpfs", "context=system_u:object_r:tmpfs_t:s0")).Run()
	root := "/proc/" + strconv.Itoa(int(c.Task.Pid())) + "/root"
	for _, path := range []string{"/", "/bin/busybox", "/dev", "/dev/null", "/dev/shm", "/dev/pts", "/dev/mqueue", "/fresh"} {
		if got := labelOf(e, root+path); got != fileLabel {
			t.Errorf("%s is %s, want %s", path, got, fileLabel)
		}
	}
	if got := labelOf(e, root+"/own"); got != "system_u:object_r:tmpfs_t:s0" {
		t.Errorf("a mount with a context of its own is %s", got)
	}
	// What is made in it has it too.
	if got := c.RunExec("sh", "-c", "echo x >/new && echo x >/fresh/new && echo x >/dev/shm/new"); got.Code != 0 {
		t.Errorf("it can't write to its own files: %+v", got)
	}
	for _, path := range []string{"/new", "/fresh/new", "/dev/shm/new"} {
		if got := labelOf(e, root+path); got != fileLabel {
			t.Errorf("%s is %s, want %s", path, got, fileLabel)
		}
	}
}

func TestSELinuxKeepsAContainerFromTheHostsFilesAndFromOthers(t *testing.T) {
	e := withSELinux(t)
	dir := e.TempDir()
	var opts []oci.SpecOpts
	for name, label := range map[string]string{"host": "", "own": fileLabel, "all": "system_u:object_r:container_file_t:s0", "other": "system_u:object_r:container_file_t:s0:c1,c3"} {
		file := filepath.Join(dir, name)
		e.Must(os.WriteFile(file, []byte(name+"\n"), 0o644), "write")
		if label != "" {
			e.Must(unix.Setxattr(file, "security.selinux", append([]byte(label), 0), 0), "label %s", file)
		}
		opts = append(opts, withMount(file, "/v/"+name, "bind", "rbind"))
	}
	look := harness.Sh("for f in host own all other; do cat /v/$f 2>/dev/null || echo no $f; done")
	const want = "no host\nown\nall\nno other\n"
	c := e.Container(append(look[:2:2], look[2]+"\nsleep 3600"), append(opts, labels(processLabel, fileLabel))...).Run()
	e.Eventually("it tells", func() bool { return strings.Count(c.IO.Stdout.String(), "\n") == 4 })
	if got := c.IO.Stdout.String(); got != want {
		t.Errorf("it reads %q, want %q", got, want)
	}
	if got := c.RunExec(look...); got.Stdout != want {
		t.Errorf("an exec reads %+v, want %q", got, want)
	}
	if got := e.Container(look, opts...).Finish(); got.Stdout != "host\nown\nall\nother\n" {
		t.Errorf("one without a label reads %+v: not all can be read at all", got)
	}
}

func TestTheSessionKeyringHasTheProcesssLabel(t *testing.T) {
	e := withSELinux(t)
	self, err := os.Open("/proc/self/exe")
	e.Must(err, "open")
	defer self.Close()
	program := filepath.Join(e.TempDir(), "program")
	copied, err := os.OpenFile(program, os.O_CREATE|os.O_WRONLY, 0o755)
	e.Must(err, "create")
	_, err = io.Copy(copied, self)
	e.Must(err, "copy")
	e.Must(copied.Close(), "close")
	e.Must(unix.Setxattr(program, "security.selinux", append([]byte(fileLabel), 0), 0), "label")
	tell := []string{"/program", tellKeyringsLabel}
	unconfined := change(func(s *oci.Spec) { s.Linux.Seccomp = nil }) // which refuses keyctl
	c := e.Container(harness.Sleep(), labels(processLabel, fileLabel), unconfined, withMount(program, "/program", "bind", "rbind")).Run()
	if got := c.RunExec(tell...); got.Stdout != processLabel+"\n" {
		t.Errorf("an exec's is %+v, want %s", got, processLabel)
	}
	if got := e.Container(tell, labels(processLabel, fileLabel), unconfined, withMount(program, "/program", "bind", "rbind")).Finish(); got.Stdout != processLabel+"\n" {
		t.Errorf("the container's is %+v, want %s", got, processLabel)
	}
}

func TestALabelThatThePolicyDoesNotKnowIsRefused(t *testing.T) {
	e := withSELinux(t)
	const unknown = "system_u:system_r:no_such_type_t:s0"
	for field, opt := range map[string]oci.SpecOpts{
		"process.selinuxLabel": labels(unknown, fileLabel),
		"linux.mountLabel":     labels(processLabel, unknown),
	} {
		err := e.Container([]string{"true"}, opt).TryCreate()
		if err == nil {
			t.Errorf("%s: no error", field)
		} else if !peer() && !strings.Contains(err.Error(), field) {
			t.Errorf("%s: the error does not name it: %v", field, err)
		}
	}
	c := e.Container(harness.Sleep(), labels(processLabel, fileLabel)).Run()
	process := c.Process([]string{"true"}, func(p *specs.Process) { p.SelinuxLabel = unknown })
	x := c.Exec(nil, process)
	err := x.Process.Start(e.Ctx)
	if _, deleteErr := x.Process.Delete(e.Ctx); deleteErr != nil {
		t.Errorf("delete an exec that was not started: %v", deleteErr)
	}
	if err == nil {
		t.Error("an exec: no error")
	} else if !peer() && !strings.Contains(err.Error(), "process.selinuxLabel") {
		t.Errorf("an exec: the error does not name the field: %v", err)
	}
	if got := c.RunExec("echo", "lives"); got.Stdout != "lives\n" {
		t.Errorf("the container then: %+v", got)
	}
}
