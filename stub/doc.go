// Package stub starts the stub, the first task, from which all others are
// cloned, and makes tasks of programs that call on a server.
//
// A stub is a process of some kilobytes that runs nothing but the server of
// package rsys, in an address space of its own. So nothing ever shares this
// process's memory, and a copy of the stub costs next to nothing. Its program is
// a static ELF of a single page, made at run time of the machine code that this
// binary carries anyway: there is no second binary to install.
//
// # The bootstrap
//
//	this process                                     the stub's program
//	     | execve, in a session of its own, in /,            |
//	     |    with descriptors 0 to 3 and no environment     |
//	     |-------------------------------------------------->|
//	     | on descriptor 3, by SCM_RIGHTS:                   |
//	     |    channel, data socket, memfd, connection        |
//	     |-------------------------------------------------->| recvmsg, close 3
//	     |                       on the data socket:         |
//	     |    a description: ten words, argv, environment    |
//	     |<--------------------------------------------------|
//	     |                       on the channel: hello (0)   |
//	     |<--------------------------------------------------| serves
//	     | mmap the memfd                                    |
//	     |<------------------------------------------------->|
//	     | close it, prctl(PR_SET_NAME), set_robust_list     |
//	     |<------------------------------------------------->|
//	     | PR_SET_DUMPABLE 0, close what was inherited       |
//	     |<------------------------------------------------->|
//
// The new task has a descriptor table, an address space and namespaces of its own as
// far as handles go, a signal mask as described, and its standard descriptors.
// rsyscall's epoll and child monitor have no part in it: Go's poller waits for
// the process's pidfd, and children of tasks are our children.
//
// The description is believed for nothing. Its counts and lengths are bounded before memory is
// taken for them; its descriptors must be distinct and not 0; what it says of itself is used only in requests to that
// same process. A bootstrap that fails leaves nothing, takes at most 10 seconds, and its error names the
// step.
//
// The robust futex in the memfd tells when the stub leaves: the kernel marks
// it when its owner execs or ends. Which of the two it was, a zombie can be asked
// too: the stub bears a random name that execve takes away. So a stub is classified as
// [rsys.Run.Exec] does it for clones.
//
// # Two transports
//
// With [SharedArena] the memfd is the arena in which programs, their arguments and results lie;
// a program costs one round trip, and the stub can be cloned.
//
// With [DataSocket] the memfd is a single page for the futex. The task's memory is anonymous; before a
// request it reads what the request needs from its data socket, and afterwards it writes it there:
// three round trips. Calls, programs and results are the same. What such a task can't do:
//
//   - [rsys.Task.Clone] and [rsys.Run.Bear]: a child's stack and futex lie in shared memory. It is [rsys.ErrNotShared].
//   - Say at which step of a program it died: its memory dies with it. The [rsys.DiedError] gives the range.
//   - Say why its exec failed, if a seccomp filter that it has installed keeps it from answering.
//
// # The server
//
// A [Server] listens on a socket. A process that execs the stub's program, which [WriteProgram]
// writes to a file, with [SocketVariable] in its environment connects to it, and
// [Server.Accept] makes a task of it. Everything it was started with is there: arguments
// and environment in the [Description], the working directory by [Stub.Getwd], its input and output as
// descriptors 0 and 1. So a command in anybody's shell script is run from here:
//
//	printf 'a\nb\n' | RSYS_STUB_SOCKET=/run/x/socket ./program args | cat
//
// It is not our child. It can't be cloned ([rsys.ErrNotOurs]); its end is seen by its pidfd,
// what it ended with is seen if its parent has not reaped it yet or the kernel is Linux 6.15 or later, and else not
// known ([rsys.ExitStatus.Known]). A program whose server is missing or goes away exits with status 125, or dies of SIGPIPE.
//
// # Security
//
//   - A stub's program is in a memfd sealed against writing. Where executing memfds is forbidden
//     (vm.memfd_noexec=2) it is in a file of mode 0500 that has no name, in a directory that is not mounted noexec.
//   - A started stub has no descriptor, environment or directory of ours, can't be traced by others of its user (it is not dumpable), and is
//     killed when the thread that started it ends, which is when this process does.
//   - A server's socket is of mode 0600 from before anybody could connect. A caller must be of the same user, or root,
//     and the process that connected must be the one that holds the channel. It is identified by SO_PEERPIDFD, or before
//     Linux 6.5 by its number, which is checked in the same way.
//   - A caller that fails is hung up on, not killed. One that became a task is killed by [Stub.Close].
//   - Who runs a task's code can lie in every answer. It gets no memory of ours but the arena's; its answers are used
//     in requests to itself. With a shared arena it can change programs under way: its own, and those of other tasks with the same arena.
//     A caller has an arena to itself.
package stub
