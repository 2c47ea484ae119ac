package kubelet

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/integration/harness"
)

type object = map[string]any

// container is a pod's that runs a script, with further fields of its spec.
func container(name, script string, more object) object {
	c := object{"name": name, "image": harness.ImageName, "imagePullPolicy": "Never", "command": []string{"sh", "-c", script}}
	maps.Copy(c, more)
	return c
}

func spec(e *harness.Env, fields object) string {
	e.Helper()
	data, err := json.Marshal(fields)
	e.Must(err, "the pod's spec")
	return string(data)
}

// serve is a script that runs until it is told to end.
const serve = "trap 'echo told to end; exit 0' TERM; while :; do sleep 0.2; done"

func start(t *testing.T) *harness.Env { return harness.New(t, daemon) }

func TestAPodIsReadyWhenItsInitContainersAreDoneAndItsProbesSucceed(t *testing.T) {
	e := start(t)
	volume := object{"volumeMounts": []object{{"name": "work", "mountPath": "/work"}}}
	main := maps.Clone(volume)
	main["readinessProbe"] = object{"exec": object{"command": []string{"cat", "/work/ready"}}, "periodSeconds": 1}
	p := newPod(e, "ready", spec(e, object{
		"terminationGracePeriodSeconds": 5,
		"volumes":                       []object{{"name": "work", "emptyDir": object{}}},
		"initContainers":                []object{container("init", "echo from init >/work/made; exit 0", volume)},
		"containers":                    []object{container("main", "cat /work/made; "+serve, main)},
	}))
	st := p.until("it runs", func(st *podStatus) bool {
		return st.Phase == "Running" && len(st.ContainerStatuses) == 1 && st.ContainerStatuses[0].State.Running != nil
	})
	if st.ready() {
		t.Error("ready before its probe succeeds")
	}
	if end := st.InitContainerStatuses[0].State.Terminated; end == nil || end.ExitCode != 0 || end.Reason != "Completed" {
		t.Errorf("the init container: %+v", end)
	}
	p.exec("main", "touch /work/ready")
	st = p.until("it is ready", (*podStatus).ready)
	if st.PodIP == "" || st.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("%+v", st)
	}
	p.exec("main", "rm /work/ready")
	p.until("it is no longer", func(st *podStatus) bool { return !st.ready() })
	if got := p.log("main"); got != "from init\n" {
		t.Errorf("its log is %q", got)
	}
}

func TestAContainerWhoseLivenessProbeFailsIsToldToEndAndStartedAgain(t *testing.T) {
	e := start(t)
	p := newPod(e, "alive", spec(e, object{
		"containers": []object{container("main", "touch /tmp/alive; "+serve, object{
			"livenessProbe": object{"exec": object{"command": []string{"test", "-e", "/tmp/alive"}}, "periodSeconds": 1, "failureThreshold": 2},
		})},
	}))
	before := p.until("it runs", (*podStatus).ready)
	p.exec("main", "rm /tmp/alive")
	after := p.until("it was started again", func(st *podStatus) bool { return st.ready() && st.ContainerStatuses[0].RestartCount == 1 })
	if after.ContainerStatuses[0].ContainerID == before.ContainerStatuses[0].ContainerID {
		t.Error("it is the same container")
	}
	if end := after.ContainerStatuses[0].LastState.Terminated; end == nil || end.ExitCode != 0 || end.Reason != "Completed" {
		t.Errorf("the first one's end: %+v", end)
	}
}

func TestAPodThatIsTakenAwayIsPreparedAndToldToEnd(t *testing.T) {
	e := start(t)
	dir := t.TempDir()
	p := newPod(e, "ends", spec(e, object{
		"terminationGracePeriodSeconds": 10,
		"volumes":                       []object{{"name": "host", "hostPath": object{"path": dir}}},
		"containers": []object{container("main", "trap 'echo told >>/host/log; exit 0' TERM; while :; do sleep 0.2; done", object{
			"volumeMounts": []object{{"name": "host", "mountPath": "/host"}},
			"lifecycle": object{
				"postStart": object{"exec": object{"command": []string{"sh", "-c", "echo begun >>/host/log"}}},
				"preStop":   object{"exec": object{"command": []string{"sh", "-c", "echo prepared >>/host/log"}}},
			},
		})},
	}))
	p.until("it runs", (*podStatus).ready)
	p.remove()
	if log, err := os.ReadFile(filepath.Join(dir, "log")); string(log) != "begun\nprepared\ntold\n" {
		t.Errorf("%q, %v", log, err)
	}
}

func TestOneThatEatsTooMuchMemoryIsOOMKilled(t *testing.T) {
	e := start(t)
	p := newPod(e, "eats", spec(e, object{
		"restartPolicy": "Never",
		"containers": []object{container("main", "head -c 200000000 /dev/zero | tail", object{
			"resources": object{"limits": object{"memory": "32Mi"}},
		})},
	}))
	st := p.until("it has ended", func(st *podStatus) bool {
		return len(st.ContainerStatuses) > 0 && st.ContainerStatuses[0].State.Terminated != nil
	})
	if end := st.ContainerStatuses[0].State.Terminated; end.Reason != "OOMKilled" || end.ExitCode != 137 {
		t.Errorf("%+v", end)
	}
	p.until("the pod has failed", func(st *podStatus) bool { return st.Phase == "Failed" })
}

func TestAPodsResourcesAreInItsCgroup(t *testing.T) {
	e := start(t)
	p := newPod(e, "limited", spec(e, object{
		"containers": []object{container("main", "cat /proc/self/cgroup; "+serve, object{
			"resources": object{"limits": object{"memory": "64Mi", "cpu": "500m"}, "requests": object{"memory": "32Mi", "cpu": "250m"}},
		})},
	}))
	p.until("it runs", (*podStatus).ready)
	dirs, _ := filepath.Glob("/sys/fs/cgroup/cpu/" + node.cgroup + "/kubepods/burstable/pod*/*/cpu.cfs_quota_us")
	v2, _ := filepath.Glob("/sys/fs/cgroup/" + node.cgroup + "/kubepods/burstable/pod*/*/cpu.max")
	var quota []string
	for _, file := range append(dirs, v2...) {
		data, err := os.ReadFile(file)
		e.Must(err, "read")
		quota = append(quota, strings.TrimSpace(string(data)))
	}
	// The pause container has no limit of its own.
	if got := fmt.Sprint(quota); !strings.Contains(got, "50000") {
		t.Errorf("CPU quotas in the pod's cgroup are %v", got)
	}
	p.Eventually("its memory is in the kubelet's metrics", func() bool {
		body, err := node.get("/metrics/resource")
		e.Must(err, "metrics")
		for line := range strings.Lines(body) {
			if strings.HasPrefix(line, `container_memory_working_set_bytes{container="main",namespace="default",pod="limited-node"}`) {
				n, err := strconv.ParseFloat(strings.Fields(line)[1], 64)
				return err == nil && n > 0
			}
		}
		return false
	})
}

// The kubelet looks for them in what the runtime says of itself. Recursive read-only mounts, too, but not without a cluster.
func TestAPodMayHaveAUserNamespace(t *testing.T) {
	e := start(t)
	p := newPod(e, "userns", spec(e, object{
		"hostUsers": false,
		"volumes":   []object{{"name": "scratch", "emptyDir": object{}}},
		"containers": []object{container("main", "cut -c 12-21 /proc/self/uid_map; touch /scratch/x && stat -c %u /scratch/x; "+serve, object{
			"volumeMounts": []object{{"name": "scratch", "mountPath": "/scratch"}},
		})},
	}))
	p.until("it runs", (*podStatus).ready)
	var first, owner string
	p.Eventually("its log", func() bool {
		lines := strings.Fields(p.log("main"))
		if len(lines) < 2 {
			return false
		}
		first, owner = lines[0], lines[1]
		return true
	})
	if n, err := strconv.Atoi(first); err != nil || n < 65536 {
		t.Errorf("root of the container is user %q of the host", first)
	}
	if owner != "0" {
		t.Errorf("a file it made in a volume is user %s's to it", owner)
	}
}

func TestPodsGoOnWithoutTheKubeletAndContainerd(t *testing.T) {
	e := start(t)
	p := newPod(e, "goes-on", spec(e, object{
		"terminationGracePeriodSeconds": 5,
		"containers":                    []object{container("main", "echo begun; "+serve, nil)},
	}))
	before := p.until("it runs", (*podStatus).ready)
	node.kill(unix.SIGKILL)
	daemon.Kill()
	e.Must(daemon.Run(), "containerd again")
	e.Must(node.run(), "the kubelet again")
	after := p.until("it runs", (*podStatus).ready)
	if a, b := after.ContainerStatuses[0], before.ContainerStatuses[0]; a.ContainerID != b.ContainerID || a.RestartCount != 0 {
		t.Errorf("it was %+v, and is %+v", b, a)
	}
	if got := p.log("main"); got != "begun\n" {
		t.Errorf("its log is %q", got)
	}
}
