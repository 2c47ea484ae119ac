package rsys

// The pause program holds namespaces and is the init of a PID namespace. It ignores SIGCHLD,
// by which the kernel reaps what is orphaned to it at once, without waking it, and sleeps. An init
// gets no signal from its own namespace that it has no handler for, and from outside only SIGKILL and
// SIGSTOP, so there is nothing else to do. It has no data and uses 32 bytes of its stack.

func pauseAddress() uintptr

// PauseCode is the pause program's machine code, for this architecture. Its entry is its first byte.
func PauseCode() []byte { return codeAt(pauseAddress()) }
