package bootstrap

import "syscall"

// maxInput bounds what containerd may write to standard input.
const maxInput = 10 << 20

// Main runs the start verb, and does not return, if this process was called with it.
// It may be called before package os is initialised.
func Main() {
	args := commandLine()
	if len(args) == 0 {
		return
	}
	// A wrong command line is main's to complain of.
	flags, err := ParseFlags(args[1:])
	if err != nil || flags.Verb != "start" || flags.Info || flags.Version || flags.Help {
		return
	}
	input, err := readAll(0, maxInput)
	if err != nil {
		exit(args[0], wrap("read standard input", err))
	}
	err = Start(args[1:], syscall.Environ(), input, func(answer []byte) error {
		if err := writeAll(1, answer); err != nil {
			return wrap("write the answer", err)
		}
		return nil
	})
	if err != nil {
		exit(args[0], err)
	}
	syscall.Exit(0)
}

func exit(program string, err error) {
	for i := len(program) - 1; i >= 0; i-- {
		if program[i] == '/' {
			program = program[i+1:]
			break
		}
	}
	writeAll(2, []byte(program+": start: "+err.Error()+"\n"))
	syscall.Exit(1)
}

// commandLine is os.Args, read where package os has not put it yet.
func commandLine() []string {
	data, err := readFile("/proc/self/cmdline", 8<<20)
	if err != nil {
		return nil
	}
	var args []string
	start := 0
	for i, c := range data {
		if c == 0 {
			args = append(args, string(data[start:i]))
			start = i + 1
		}
	}
	return args
}
