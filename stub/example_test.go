package stub_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rsys-io/rsys/rsys/call"
	"github.com/rsys-io/rsys/stub"
)

// Stand in for a command in a shell pipeline: read what it is given, answer, and exit.
func ExampleServer() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "stub")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	server, err := stub.Listen(filepath.Join(dir, "socket"))
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	if err := stub.WriteProgram(filepath.Join(dir, "count")); err != nil {
		log.Fatal(err)
	}

	go func() {
		command, err := server.Accept(ctx)
		if err != nil {
			log.Print(err)
			return
		}
		defer command.Close()
		if err := count(ctx, command); err != nil {
			log.Print(err)
		}
	}()

	sh := exec.Command("sh", "-c", `{ printf 'a\nb\n' | ./count lines; echo "status $?"; } | cat`)
	sh.Dir, sh.Env = dir, append(os.Environ(), stub.SocketVariable+"="+server.Addr())
	sh.Stderr = os.Stderr
	out, err := sh.Output()
	fmt.Printf("%s%v\n", out, err)
	// Output:
	// lines: 2
	// status 2
	// <nil>
}

// count is a command that counts the lines of its input, by remote calls.
func count(ctx context.Context, command *stub.Stub) error {
	task, input := command.Task, ""
	for {
		run := task.NewRun()
		err := run.Do(ctx, call.Step{Call: call.Read(task.Stdin().Arg(), 4096)})
		if err != nil {
			run.Close()
			return err
		}
		n := run.Result(0).Value
		input += string(run.Out(0, 1)[:n])
		run.Close()
		if n == 0 {
			break
		}
	}
	lines := strings.Count(input, "\n")
	answer := fmt.Sprintf("%s: %d\n", command.Description.Args[1], lines)
	if _, err := task.Call(ctx, call.Write(task.Stdout().Arg(), answer)); err != nil {
		return err
	}
	return command.Exit(ctx, lines)
}
