// Package critest runs the CRI's own tests. They have a containerd of their own: they make hundreds of pods, whose events it keeps for who
// subscribes next, and it creates nothing while that one does not read them.
//
// RSYS_RUNTIME=io.containerd.runc.v2 compares with runc.
package critest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/integration/harness"
)

var daemon *harness.Daemon

func TestMain(m *testing.M) {
	harness.Isolate(unix.CLONE_NEWNET)
	cfg, err := harness.FromEnv()
	if err == nil {
		cfg.CRI = &harness.CRI{Handlers: []harness.Handler{{Name: "rsys", Type: harness.Runtime()}}}
		if !cfg.Old() {
			cfg.CRI.Handlers = append(cfg.CRI.Handlers, harness.Handler{
				Name: "streamed", Type: harness.Runtime(), TOML: harness.Streamed,
			})
		}
		daemon, err = harness.Start(cfg)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "critest:", err)
		os.Exit(1)
	}
	fmt.Printf("# runtime %s, containerd in %s\n", harness.Runtime(), cfg.Containerd)
	code := m.Run()
	daemon.Stop()
	os.Exit(code)
}

// What of the CRI's own tests is not run, by the names of their specs.
var notRun = []struct{ specs, why string }{
	{"Image|image volume|NRI|benchmark", "not about the runtime"},
	{"AppArmor|SELinux", "the kernel has neither; hack/vm-test has tests of ours"},
	{"HostPID|PodPID|ContainerPID|NoNewPrivs|Multiple Containers|portforward in host network|belongs to some groups in the image", "they need images of their own, and there is no registry"},
	{"HostIpc|execSync with timeout|MaskedPaths", "they need ipcs, pgrep and an ls of its own, which the image's busybox has not"},
}

func TestTheCRIsOwnTestsPass(t *testing.T) {
	found, _ := filepath.Glob(filepath.Join(harness.Cache(), "critest-*/bin/critest.test"))
	if len(found) == 0 {
		t.Fatal("no critest (hack/setup critest)")
	}
	handlers := []string{"rsys", "streamed"}
	if daemon.Old() || harness.Runtime() != "io.containerd.rsys.v1" {
		handlers = handlers[:1]
	}
	const web = "rsys.io/web:latest"
	var tar bytes.Buffer
	if err := harness.WriteImageFor(&tar, web, "sh", "-c", "mkdir /www; echo ok >/www/index.html; exec httpd -f -p 80 -h /www"); err != nil {
		t.Fatal(err)
	}
	if err := daemon.Load(tar.Bytes()); err != nil {
		t.Fatal(err)
	}
	var skip []string
	for _, not := range notRun {
		t.Logf("not run: %s: %s", not.specs, not.why)
		skip = append(skip, not.specs)
	}
	for _, handler := range handlers {
		t.Run(handler, func(t *testing.T) {
			e := harness.New(t, daemon)
			images := filepath.Join(t.TempDir(), "images.yaml")
			e.Must(os.WriteFile(images, fmt.Appendf(nil, "defaultTestContainerImage: %s\nwebServerTestImage: %s\n", harness.ImageName, web), 0o644), "name the images")
			out, err := exec.CommandContext(e.Ctx, found[len(found)-1], "--runtime-endpoint", "unix://"+daemon.Address(), "--runtime-handler", handler,
				"--config", "/dev/null", "--test-images-file", images, "--ginkgo.skip", strings.Join(skip, "|"), "--ginkgo.no-color", "--ginkgo.v=false").CombinedOutput()
			ran := regexp.MustCompile(`(?m)^(Ran|SUCCESS|FAIL)\b.*`).FindAllString(string(out), -1)
			t.Log(strings.Join(ran, "; "))
			if err != nil || len(ran) == 0 || !strings.Contains(string(out), "SUCCESS!") {
				t.Errorf("%v\n%s", err, out[max(0, len(out)-8000):])
			}
		})
	}
}
