package criu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

func program(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "criu")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAnErrorIsInCriusWords(t *testing.T) {
	for name, tc := range map[string]struct {
		script, log string
		says, not   []string
	}{
		"of its log, if there is one": {
			script: "echo noise >&2; { echo '(00.1) fine'; echo '(00.2) Error (criu/a.c:1): no such luck'; } >LOG",
			says:   []string{"criu/a.c:1", "no such luck", "dump.log"}, not: []string{"noise", "fine"},
		},
		"of what it wrote, if there is no log": {script: "echo cannot begin >&2", says: []string{"cannot begin"}, not: []string{"dump.log"}},
		"but only the first of many": {
			script: "for i in 1 2 3 4 5 6 7 8 9; do echo \"Error line $i.\"; done >LOG",
			says:   []string{"line 1.", "line 6.", "3 lines more"}, not: []string{"line 7."},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			script := strings.ReplaceAll(tc.script, "LOG", filepath.Join(dir, "dump.log"))
			r := &Request{Path: program(t, script), Type: rpc.CriuReqType_DUMP, Opts: &rpc.CriuOpts{LogFile: Ptr("dump.log")}, Images: dir}
			_, err := r.Do(context.Background())
			var failed *Error
			if !errors.As(err, &failed) {
				t.Fatalf("error %v", err)
			}
			for _, s := range tc.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q does not say %q", err, s)
				}
			}
			for _, s := range tc.not {
				if strings.Contains(err.Error(), s) {
					t.Errorf("%q says %q", err, s)
				}
			}
		})
	}
}

func TestALogOfBeforeIsNotQuoted(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "dump.log")
	if err := os.WriteFile(log, []byte("Error of yesterday\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(log, old, old); err != nil {
		t.Fatal(err)
	}
	r := &Request{Path: program(t, "exit 1"), Type: rpc.CriuReqType_DUMP, Opts: &rpc.CriuOpts{LogFile: Ptr("dump.log")}, Images: dir}
	if _, err := r.Do(context.Background()); err == nil || strings.Contains(err.Error(), "yesterday") {
		t.Errorf("error %v", err)
	}
}

func TestARequestEndsWithItsContext(t *testing.T) {
	defer func(d time.Duration) { waitUndo = d }(waitUndo)
	waitUndo = 100 * time.Millisecond
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	r := &Request{Path: program(t, "exec sleep 60"), Type: rpc.CriuReqType_DUMP, Opts: &rpc.CriuOpts{}, Images: t.TempDir()}
	start := time.Now()
	if _, err := r.Do(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("it took %v", d)
	}
}

// What criu has forked holds the socket, as criu's own end does not show there. It is in the mount namespace that criu was started in.
func TestWhatIsLeftOfAFailedRequestIsKilled(t *testing.T) {
	dir := t.TempDir()
	holder := exec.Command("sleep", "60")
	holder.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := holder.Start(); err != nil {
		t.Skip("no mount namespace: ", err)
	}
	defer func() { holder.Process.Kill(); holder.Wait() }()
	r := &Request{Path: program(t, "sleep 60 & echo $! >"+dir+"/pid; kill -9 $$"), Type: rpc.CriuReqType_RESTORE, Opts: &rpc.CriuOpts{}, Images: dir, Holder: holder.Process.Pid}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if _, err := r.Do(ctx); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	pid, err := os.ReadFile(dir + "/pid")
	if err != nil {
		t.Fatal(err)
	}
	if cmdline, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/cmdline"); err == nil && len(cmdline) > 0 {
		t.Errorf("%q is left", cmdline)
	}
	if holder.Process.Signal(syscall.Signal(0)) != nil {
		t.Error("the holder is gone")
	}
}

// An answer that criu has sent right before its end is read.
func TestAnAnswerIsReadAfterCriusEnd(t *testing.T) {
	answer, err := (&rpc.CriuResp{Type: Ptr(rpc.CriuReqType_RESTORE), Success: Ptr(true), Restore: &rpc.CriuRestoreResp{Pid: Ptr(int32(7))}}).MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "answer")
	if err := os.WriteFile(file, answer, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		r := &Request{Path: program(t, "head -c 1 <&3 >/dev/null; cat "+file+" >&3"), Type: rpc.CriuReqType_RESTORE, Opts: &rpc.CriuOpts{}, Images: t.TempDir()}
		resp, err := r.Do(context.Background())
		if err != nil || resp.GetRestore().GetPid() != 7 {
			t.Fatalf("%v, %v", resp, err)
		}
	}
}

func TestTheFirstThreadJoinsNothing(t *testing.T) {
	for range 200 {
		if err := onAThread(func() error {
			if unix.Gettid() == unix.Getpid() {
				return errors.New("it is on the process's first thread")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// The note of a criu that is gone: what it has left in its mount namespace is killed, and nothing else that may be in one of that number.
func TestWhatANotedCriuHasLeftIsKilled(t *testing.T) {
	note := filepath.Join(t.TempDir(), "note")
	if err := EndNoted(note); err != nil {
		t.Errorf("without a note: %v", err)
	}
	cmd := exec.Command("sh", "-c", "sleep 60 & wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := cmd.Start(); err != nil {
		t.Skip("no mount namespace: ", err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	mounts, err := os.Readlink(namespaceOf(cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	sleeps := func() (pids []int) {
		for _, pid := range in(mounts, cmd.Process.Pid) {
			if comm, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm"); string(comm) == "sleep\n" {
				pids = append(pids, pid)
			}
		}
		return pids
	}
	for deadline := time.Now().Add(10 * time.Second); len(sleeps()) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not start")
		}
	}
	exe, err := os.Readlink("/proc/" + strconv.Itoa(sleeps()[0]) + "/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{"", "1 ", "1 " + mounts + " /no/such/criu", "1 mnt:[1] " + exe} {
		if err := os.WriteFile(note, []byte(other), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := EndNoted(note); err != nil || len(sleeps()) != 1 {
			t.Errorf("with the note %q: %v, left %v", other, err, sleeps())
		}
	}
	if err := os.WriteFile(note, []byte("1 "+mounts+" "+exe), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := EndNoted(note); err != nil || len(sleeps()) != 0 {
		t.Errorf("%v, left %v", err, sleeps())
	}
}

// In whatever mount namespace it is just then.
func TestANotedCriuIsWaitedForAndThenKilled(t *testing.T) {
	note := filepath.Join(t.TempDir(), "note")
	log, err := os.Create(filepath.Join(filepath.Dir(note), "restore.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	itself, forked := exec.Command("sleep", "60"), exec.Command("sleep", "60")
	forked.ExtraFiles = []*os.File{log}
	for _, cmd := range []*exec.Cmd{itself, forked} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go cmd.Wait()
	}
	exe, err := os.Readlink("/proc/" + strconv.Itoa(itself.Process.Pid) + "/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(note, fmt.Appendf(nil, "%d mnt:[1] %s", itself.Process.Pid, exe), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := EndNoted(note); err != nil {
		t.Error(err)
	}
	for _, cmd := range []*exec.Cmd{itself, forked} {
		if err := cmd.Process.Signal(syscall.Signal(0)); !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, syscall.ESRCH) {
			t.Errorf("it is there still: %v", err)
			cmd.Process.Kill()
		}
	}
}
