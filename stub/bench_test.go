package stub

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

func BenchmarkStart(b *testing.B) {
	memfd := func() (*os.File, error) { return sealedMemfd() }
	for _, bb := range []struct {
		name string
		cfg  Config
		exe  func() (*os.File, error)
	}{
		{"memfd", Config{}, memfd},
		{"file on tmpfs", Config{}, func() (*os.File, error) { return unnamedFile("/dev/shm") }},
		{"file on disk", Config{}, func() (*os.File, error) { return unnamedFile(b.TempDir()) }},
		{"memfd, data socket", Config{Transport: DataSocket}, memfd},
	} {
		b.Run(bb.name, func(b *testing.B) {
			for b.Loop() {
				s, err := bb.cfg.start(context.Background(), func(_, bootstrap *os.File) (int, error) {
					exe, err := bb.exe()
					if err != nil {
						return 0, err
					}
					defer exe.Close()
					return spawn(exe, bootstrap)
				})
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.Task.Pid()))
				if m := regexp.MustCompile(`VmRSS:\s+(\d+)`).FindSubmatch(status); err == nil && m != nil {
					var kb float64
					fmt.Sscan(string(m[1]), &kb)
					b.ReportMetric(kb, "kB-RSS")
				}
				s.Close()
				b.StartTimer()
			}
			b.ReportMetric(float64(len(image())), "B-ELF")
		})
	}
}

func BenchmarkAccept(b *testing.B) {
	server, err := Listen(filepath.Join(b.TempDir(), "socket"))
	if err != nil {
		b.Fatal(err)
	}
	defer server.Close()
	program := filepath.Join(b.TempDir(), "program")
	if err := WriteProgram(program); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		cmd := exec.Command(program)
		cmd.Env = []string{SocketVariable + "=" + server.Addr()}
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		s, err := server.Accept(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		s.Close()
		cmd.Wait()
		b.StartTimer()
	}
}
