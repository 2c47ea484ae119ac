#include "textflag.h"

// What pause.go says, and pause_amd64.s, which this follows.

#define SYS_ppoll        $73
#define SYS_rt_sigaction $134

TEXT ·pause(SB), NOSPLIT|NOFRAME|TOPFRAME, $0-0
	SUB  $32, RSP
	MOVD $1, R0 // SIG_IGN
	MOVD R0, 0(RSP)
	MOVD ZR, 8(RSP)
	MOVD ZR, 16(RSP)
	MOVD ZR, 24(RSP)
	MOVD $17, R0 // SIGCHLD
	MOVD RSP, R1
	MOVD ZR, R2
	MOVD $8, R3
	MOVD SYS_rt_sigaction, R8
	SVC

forever:
	MOVD ZR, R0
	MOVD ZR, R1
	MOVD ZR, R2
	MOVD ZR, R3
	MOVD ZR, R4
	MOVD SYS_ppoll, R8
	SVC
	B    forever

	// The mark by which pause.go finds the end.
	WORD $0x73722d2d
	WORD $0x2d2d7379
	WORD $0x6e652d2d
	WORD $0x2d2d2d64

// func pauseAddress() uintptr
TEXT ·pauseAddress(SB), NOSPLIT, $0-8
	MOVD $·pause(SB), R0
	MOVD R0, ret+0(FP)
	RET
