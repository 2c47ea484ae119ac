#include "textflag.h"

// What pause.go says. It is copied out of this binary and run elsewhere.

#define SYS_rt_sigaction $13
#define SYS_ppoll        $271

TEXT ·pause(SB), NOSPLIT|NOFRAME|TOPFRAME, $0-0
	// A struct sigaction of the kernel's: handler, flags, restorer, mask.
	XORL  AX, AX
	PUSHQ AX
	PUSHQ AX
	PUSHQ AX
	PUSHQ $1 // SIG_IGN
	MOVL  $17, DI // SIGCHLD
	MOVQ  SP, SI
	XORL  DX, DX
	MOVL  $8, R10
	MOVL  SYS_rt_sigaction, AX
	SYSCALL

forever:
	XORL DI, DI
	XORL SI, SI
	XORL DX, DX
	XORL R10, R10
	XORL R8, R8
	MOVL SYS_ppoll, AX
	SYSCALL
	JMP  forever

	// The mark by which pause.go finds the end.
	QUAD $0x2d2d737973722d2d // "--rsys--"
	QUAD $0x2d2d2d646e652d2d // "--end---"

// func pauseAddress() uintptr
TEXT ·pauseAddress(SB), NOSPLIT, $0-8
	LEAQ ·pause(SB), AX
	MOVQ AX, ret+0(FP)
	RET
