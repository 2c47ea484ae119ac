package rsys_test

import (
	"context"
	"fmt"
	"log"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/rsys"
	"github.com/rsys-io/rsys/rsys/call"
	"github.com/rsys-io/rsys/stub"
)

// A child in a new UTS namespace gets another hostname, which its parent does not see.
func Example() {
	ctx := context.Background()
	ground, err := stub.Start(ctx, 1<<20)
	if err != nil {
		log.Fatal(err)
	}
	defer ground.Close()

	task, err := ground.Task.Clone(ctx, rsys.CloneConfig{Flags: unix.CLONE_NEWUTS})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := task.Call(ctx, call.Sethostname("elsewhere")); err != nil {
		log.Fatal(err)
	}
	run := task.NewRun()
	defer run.Close()
	err = run.Exec(ctx, call.Step{Call: call.Execve("/bin/sh", []string{"sh", "-c", "test $(uname -n) = elsewhere"}, []string{"PATH=/bin:/usr/bin"})})
	if err != nil {
		log.Fatal(err)
	}
	status, err := task.Child.Wait(ctx)
	fmt.Println(status, err)
	// Output: exited with status 0 <nil>
}

// A program in which a step uses what earlier ones returned, and one may fail.
func ExampleRun_Do() {
	ctx := context.Background()
	ground, err := stub.Start(ctx, 1<<20)
	if err != nil {
		log.Fatal(err)
	}
	defer ground.Close()

	run := ground.Task.NewRun()
	defer run.Close()
	err = run.Do(ctx,
		call.Step{Call: call.Openat(call.CWD, "/nosuch", unix.O_RDONLY, 0), OnError: call.Tolerate(unix.ENOENT)},
		call.Step{Call: call.Openat(call.CWD, "/dev/zero", unix.O_RDONLY, 0)},
		call.Step{Call: call.Pread64(call.ResultOf(1), 4, 0)},
		call.Step{Call: call.Close(call.ResultOf(1))},
	)
	fmt.Println(err)
	fmt.Println(run.Result(0).Errno)
	fmt.Println(run.Out(2, 1))
	// Output:
	// <nil>
	// no such file or directory
	// [0 0 0 0]
}
