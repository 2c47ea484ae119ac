// Package rsys performs system calls in other processes: the remote system
// call machine.
//
// # Why
//
// A process is what it is by its system calls: its namespaces, mounts,
// credentials, descriptors. The usual way to set one up is to write a program
// that runs inside it, which makes these calls on itself, and then to get
// that program in there, tell it what to do, and find out what became of it. Here
// the process has no program. It runs a server of some hundred bytes of
// machine code which does one thing: it reads the number and arguments of a system
// call from a socket, performs it, and writes the result back. All logic stays in
// one place, in Go, with errors that are values and data that can be looked at.
//
// # What there is
//
//   - A [Task] is a process that runs the server. [Task.Call] performs a system
//     call in it; package call has their constructors.
//   - A [Run] performs many as one program: the server walks an array of steps in
//     shared memory by itself, so that a hundred calls cost one round trip. A step may use
//     what an earlier one returned.
//   - [Task.Clone] makes a child that is a task too, in new namespaces perhaps.
//   - [Run.Exec] ends in execve: the task leaves us, and its [Child] remains, an
//     ordinary process to be signalled and waited for.
//   - An [Arena] is the memory that we and our tasks both see.
//     A task may do without, with a data socket for it: see [Config].
//
// Where the first task comes from is package stub's business: all that [NewTask] asks for is
// a child process that runs the server's code.
//
// # What became of it
//
// A task can end in three ways, and each is told from the others for certain:
// execve succeeded (Exec returns nil), execve failed (a [StepError] with the errno), or the
// process died before (a [DiedError] with its exit status and the call that it was at).
// Three things work together. The futex monitor learns from the kernel when a
// process gives up the memory it shared with us; the child monitor waits for
// its pidfd; and the flags in /proc/pid/stat say whether a process has exec'd since its fork,
// the name there whether a stub has.
// Nothing is polled, no signal is handled, and no child but our own is ever waited for.
//
// # What can hang
//
// A system call can block for ever: the open of a fifo, a dead network
// mount. It can't be taken back, but its process can be killed. So when the context of a
// call ends, the task is killed, and the call returns at once.
//
// # Handles
//
// A descriptor's number means something in one table only. An [FD] knows its
// table, and using it with a task that has another is [ErrWrongTask]. A child
// inherits by [FD.Inherit] what was open when it was cloned, and gets what
// comes later by [Task.Pass].
package rsys
