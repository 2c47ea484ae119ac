package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/rsys-io/rsys/integration/harness"
)

// toml are options as containerd's CRI plugin and ctr hand them over.
func toml(lines ...string) *runtimeoptions.Options {
	return &runtimeoptions.Options{ConfigBody: []byte(strings.Join(lines, "\n") + "\n")}
}

// startWith begins a test whose containers have options.
func startWith(t *testing.T, options any) *harness.Env {
	t.Helper()
	if peer() {
		t.Skip("the options are given as this runtime takes them")
	}
	e := start(t)
	e.RuntimeOptions = options
	return e
}

// cgroupsOf are the cgroups of a process, one for each hierarchy.
func cgroupsOf(pid int) string {
	p, _ := harness.ReadProc(pid)
	return p.Cgroup
}

func TestTheShimIsPutInTheCgroupOfTheOptionShimCgroup(t *testing.T) {
	dir := fmt.Sprintf("/%s-shims", daemon.Namespace)
	for name, options := range map[string]any{
		"of runc's type":  &runcoptions.Options{ShimCgroup: dir},
		"of TOML":         toml("SystemdCgroup = false", fmt.Sprintf("ShimCgroup = %q", dir)),
		"of a TOML file":  &runtimeoptions.Options{ConfigPath: filepath.Join(t.TempDir(), "options.toml")},
		"with underscore": toml(fmt.Sprintf("shim_cgroup = '%s' # where shims go", dir)),
	} {
		t.Run(name, func(t *testing.T) {
			e := startWith(t, options)
			if o, ok := options.(*runtimeoptions.Options); ok && o.ConfigPath != "" {
				e.Must(os.WriteFile(o.ConfigPath, []byte("ShimCgroup = '"+dir+"'\n"), 0o600), "write the options")
			}
			at := makeCgroup(e, dir)
			c := e.Container(harness.Sleep()).Run()
			for _, pid := range shims(e) {
				if got := cgroupsOf(pid); !strings.Contains(got, at+":"+dir+"\n") {
					t.Errorf("the shim is in\n%s", got)
				}
			}
			if got := cgroupsOf(int(c.Task.Pid())); strings.Contains(got, dir+"\n") {
				t.Errorf("the container is in\n%s", got)
			}
			c.Kill(syscall.SIGKILL)
			c.Wait()
			c.Delete()
			e.Eventually("the shim has ended", func() bool { return len(shims(e)) == 0 })
		})
	}
}

// makeCgroup makes a cgroup in one hierarchy, and says which it is, as /proc/PID/cgroup has it.
func makeCgroup(e *harness.Env, dir string) string {
	e.Helper()
	root, at := "/sys/fs/cgroup/pids", ":pids"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		root, at = "/sys/fs/cgroup", "0:"
	}
	e.Must(os.Mkdir(root+dir, 0o755), "make a cgroup")
	e.Cleanup(func() {
		e.Eventually("the cgroup can be removed", func() bool { return os.Remove(root+dir) == nil })
	})
	return at
}

func TestAnOptionThatCannotBeHonouredIsRefusedByName(t *testing.T) {
	for name, options := range map[string]any{
		"BinaryName":     &runcoptions.Options{BinaryName: "/usr/bin/crun"},
		"binary_name":    toml("binary_name = 'crun'"),
		"ShimCgroup":     &runcoptions.Options{ShimCgroup: "/no/such/cgroup"},
		"shim_cgroup":    toml("ShimCgroup = '/no/such/cgroup'"),
		"TaskApiAddress": toml("TaskApiAddress = 'ttrpc+unix:///x'"),
		"TaskApiVersion": toml("TaskApiVersion = 3"),
		"Isolation":      toml("Isolation = 'sometimes'"),
		"RootfsOnHost":   toml("RootfsOnHost = 1"),
		"LogLevel":       toml("LogLevel = 'loud'"),
		"NoPivotRoot":    toml("NoPivotRoot = 'x'"),
		"line 2":         toml("NoPivotRoot = true", "IoUid"),
	} {
		t.Run(name, func(t *testing.T) {
			e := startWith(t, options)
			err := e.Container([]string{"true"}).TryCreate()
			fold := func(s string) string { return strings.ToLower(strings.ReplaceAll(s, "_", "")) }
			if err == nil || !strings.Contains(fold(err.Error()), fold(name)) {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

func TestOptionsThatHaveNothingToDoAreTaken(t *testing.T) {
	// A stanza that was runc's goes on working.
	for name, options := range map[string]any{
		//lint:ignore SA1019 containerd still takes it
		"runc's type": &runcoptions.Options{Root: "/run/somewhere", NoPivotRoot: true, NoNewKeyring: true, TaskApiVersion: 3},
		"TOML": toml("BinaryName = ''", "CriuImagePath = ''", "CriuPath = ''", "CriuWorkPath = ''", "IoGid = 0", "IoUid = 0", "NoNewKeyring = false",
			"NoPivotRoot = false", "Root = '/run/somewhere'", "ShimCgroup = ''", "SystemdCgroup = false", "TaskApiAddress = ''", "TaskApiVersion = 0",
			"Others = ['a', \"b\"]", "[More]", "IoUid = 'x'"),
	} {
		t.Run(name, func(t *testing.T) {
			e := startWith(t, options)
			if got := e.Container([]string{"echo", "ok"}).Finish(); got.Stdout != "ok\n" {
				t.Errorf("got %+v", got)
			}
			if _, err := os.Stat("/run/somewhere"); err == nil {
				t.Error("there is something at Root")
			}
		})
	}
}

func TestTheSessionKeyringIsTheContainersUnlessItIsToBeTheShims(t *testing.T) {
	if _, err := os.Stat("/proc/keys"); err != nil {
		t.Skip("this kernel has no keyrings: ", err)
	}
	for _, none := range []bool{false, true} {
		t.Run(fmt.Sprint("NoNewKeyring=", none), func(t *testing.T) {
			e := startWith(t, toml(fmt.Sprintf("NoNewKeyring = %v", none)))
			c := e.Container(harness.Sleep()).Run()
			// With the container's credentials, as a keyring is seen by who has it.
			keys, err := os.ReadFile("/proc/keys")
			e.Must(err, "read /proc/keys")
			if has := strings.Contains(string(keys), "_ses."+c.ID()); has == none {
				t.Errorf("a keyring for the container: %v\n%s", has, keys)
			}
			c.Kill(syscall.SIGKILL)
			c.Wait()
			c.Delete()
		})
	}
}

func TestIsolationIsTheStricterOfTheOptionAndTheAnnotation(t *testing.T) {
	for _, test := range []struct {
		option, annotation string
		shares             bool
	}{
		{"", "", true}, {"auto", "", true}, {"always", "", false}, {"auto", "always", false}, {"always", "auto", false},
	} {
		t.Run(test.option+","+test.annotation, func(t *testing.T) {
			e := startWith(t, toml(fmt.Sprintf("Isolation = '%s'", test.option)))
			var opts []oci.SpecOpts
			if test.annotation != "" {
				opts = append(opts, oci.WithAnnotations(map[string]string{"io.rsys.isolation": test.annotation}))
			}
			c := e.Container(harness.Sleep(), opts...).Run()
			c.RunExec("true") // now there is a joiner
			pids := shims(e)
			if len(pids) != 1 {
				t.Fatalf("there are %d shims", len(pids))
			}
			var stubs []int
			for _, p := range harness.DescendantsOf(pids[0]) {
				if strings.HasPrefix(p.Comm, "rsys-stub") {
					stubs = append(stubs, p.Pid)
				}
			}
			if len(stubs) != 2 {
				t.Fatalf("the stub and the joiner are %v", stubs)
			}
			if same := sameMemory(t, stubs[0], stubs[1]); same != test.shares {
				t.Errorf("they share memory: %v", same)
			}
			c.Kill(syscall.SIGKILL)
			c.Wait()
			c.Delete()
		})
	}
}

// sameMemory asks the kernel whether two processes share their memory: kcmp(2).
func sameMemory(t *testing.T, a, b int) bool {
	t.Helper()
	const kcmpVM, kcmp = 1, 312
	order, _, errno := syscall.Syscall6(kcmp, uintptr(a), uintptr(b), kcmpVM, 0, 0, 0)
	if errno != 0 {
		t.Skip("kcmp: ", errno)
	}
	return order == 0
}

func TestAMemoryLimitThatIsTooSmallIsNamed(t *testing.T) {
	e := startWith(t, nil)
	const limit = 8192
	c := e.Container([]string{"true"}, oci.WithMemoryLimit(limit))
	err := c.TryCreate()
	if err == nil {
		err = c.Task.Start(e.Ctx)
	}
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("linux.resources.memory.limit: the limit of %d bytes", limit)) {
		t.Errorf("the error is %v", err)
	}
}
