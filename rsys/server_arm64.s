#include "textflag.h"

// The server. See server.go for what it does, and server_amd64.s, which this
// follows label by label.
//
//	R19  the channel
//	R20  the step being run        R21  steps left, this one included
//	R22  the stack pointer, by which a child finds that it is one
//
// A system call preserves everything but R0.

#define SYS_close           $57
#define SYS_read            $63
#define SYS_write           $64
#define SYS_exit_group      $94
#define SYS_futex           $98
#define SYS_set_robust_list $99
#define SYS_rt_sigprocmask  $135
#define SYS_getpid          $172
#define SYS_gettid          $178
#define SYS_socket          $198
#define SYS_connect         $203
#define SYS_recvmsg         $212

TEXT ·server(SB), NOSPLIT|NOFRAME|TOPFRAME, $0-0
start:
	CBZ R0, stub

task:
	// R0: channel; R1: robust list head or 0, the futex word behind it; R2: request or 0.
	MOVD R0, R19
	MOVD R2, R23
	MOVD R1, R20
	MOVD RSP, R2
	AND  $~15, R2, R2
	SUB  $64, R2, R2
	MOVD R2, RSP
	MOVD R2, R22
	MOVD ZR, R0
	CBZ  R20, respond // the hello
	MOVD SYS_gettid, R8
	SVC
	MOVD $0x80000000, R1 // FUTEX_WAITERS: the kernel is to wake the monitor
	ORR  R1, R0, R0
	MOVW R0, 24(R20)
	MOVD R20, R0
	MOVD $24, R1
	MOVD SYS_set_robust_list, R8
	SVC
	CBNZ R23, born

respond:
	MOVD R0, 0(R22)
	MOVD R19, R0
	MOVD R22, R1
	MOVD $8, R2
	MOVD SYS_write, R8
	SVC
	CMP  $8, R0
	BNE  exit

serve:
	MOVD R19, R0
	MOVD R22, R1
	MOVD $56, R2
	MOVD SYS_read, R8
	SVC
	CMN  $4, R0 // EINTR
	BEQ  serve
	CMP  $56, R0
	BNE  exit
	MOVD 0(R22), R8
	CMN  $1, R8
	BEQ  program
	MOVD 8(R22), R0
	MOVD 16(R22), R1
	MOVD 24(R22), R2
	MOVD 32(R22), R3
	MOVD 40(R22), R4
	MOVD 48(R22), R5
	SVC
	MOVD RSP, R9
	CMP  R22, R9
	BEQ  respond

trampoline:
	// A child, on the stack that it was given: a function and its arguments.
	MOVD 0(R9), R10
	MOVD 8(R9), R0
	MOVD 16(R9), R1
	MOVD 24(R9), R2
	JMP  (R10)

exit:
	MOVD $125, R0 // exitServer
	MOVD SYS_exit_group, R8
	SVC
	UNDEF // where a filter forbids even that

born:
	// Nobody is greeted; the word tells that it is set. Then the program, and the end.
	ADD  $24, R20, R0
	MOVD $1, R1 // FUTEX_WAKE
	MOVD $0x7fffffff, R2
	MOVD SYS_futex, R8
	SVC
	MOVD 8(R23), R20
	MOVD 16(R23), R21
	JMP  step

program:
	MOVD 8(R22), R20
	MOVD 16(R22), R21

step:
	CMP  $0, R21
	BLE  done
	MOVD 56(R20), R9
	MOVD 8(R20), R0
	MOVD 16(R20), R1
	MOVD 24(R20), R2
	MOVD 32(R20), R3
	MOVD 40(R20), R4
	MOVD 48(R20), R5
	CBZ  R9, call

#define LOAD(bit, reg) \
	TBZ  $bit, R9, 2(PC);       \
	MOVD (reg), reg;            \
	TBZ  $(8+bit), R9, 2(PC);   \
	MOVW (reg), reg

	LOAD(0, R0)
	LOAD(1, R1)
	LOAD(2, R2)
	LOAD(3, R3)
	LOAD(4, R4)
	LOAD(5, R5)

call:
	MOVD 0(R20), R8
	TBNZ $63, R8, pseudo
	SVC
	MOVD RSP, R9
	CMP  R22, R9
	BNE  trampoline

result:
	MOVD  R0, 80(R20)
	MRS   CNTVCT_EL0, R1
	MOVD  R1, 88(R20)
	MOVWU 72(R20), R2
	CMN   $4095, R0
	BLO   advance // unsigned: no error
	NEG   R0, R0
	MOVWU 76(R20), R2
	MOVD  64(R20), R3

tolerate:
	CBZ  R3, done
	AND  $0xff, R3, R4
	CMP  R0, R4
	BEQ  advance
	CMP  $0xff, R4
	BEQ  advance
	LSR  $8, R3, R3
	JMP  tolerate

advance:
	ADD  $1, R2, R2
	SUB  R2, R21, R21
	MOVD $96, R3
	MUL  R3, R2, R2
	ADD  R2, R20, R20
	JMP  step

done:
	MOVD R21, R0
	JMP  respond

pseudo:
	CMN  $1, R8
	BNE  store32
	AND  R1, R0, R0
	CMP  R2, R0
	MOVD ZR, R0
	BEQ  result
	NEG  R3, R0
	JMP  result

store32:
	CMN  $2, R8
	BNE  store64
	MOVW R1, (R0)
	MOVD ZR, R0
	JMP  result

store64:
	CMN  $3, R8
	BEQ  store
	MOVD $-38, R0 // ENOSYS
	JMP  result

store:
	MOVD R1, (R0)
	MOVD ZR, R0
	JMP  result

stub:
	// A program just started. R20: argc, argv, a null, envp, a null.
	MOVD RSP, R20
	AND  $~15, R20, R22
	SUB  $256, R22, R22
	MOVD R22, RSP
	MOVD $3, R19
	MOVD 0(R20), R21
	ADD  R21<<3, R20, R21
	ADD  $16, R21, R21 // envp

environment:
	MOVD (R21), R1
	ADD  $8, R21, R21
	CBZ  R1, receive
	MOVD (R1), R2
	MOVD $0x5554535f53595352, R3 // "RSYS_STU"
	CMP  R3, R2
	BNE  environment
	MOVD 8(R1), R2
	MOVD $0x54454b434f535f42, R3 // "B_SOCKET"
	CMP  R3, R2
	BNE  environment
	MOVBU 16(R1), R2
	CMP  $0x3d, R2 // "="
	BNE  environment

	// connect(socket(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC, 0), the path behind it)
	MOVD $1, R2
	MOVH R2, 0(R22)
	ADD  $17, R1, R1
	ADD  $2, R22, R3
	ADD  $110, R22, R4

path:
	CMP   R4, R3
	BEQ   exit
	MOVBU (R1), R2
	MOVB  R2, (R3)
	ADD   $1, R1, R1
	ADD   $1, R3, R3
	CBNZ  R2, path
	SUB   R22, R3, R24
	MOVD  $1, R0
	MOVD  $0x80001, R1
	MOVD  ZR, R2
	MOVD  SYS_socket, R8
	SVC
	TBNZ  $63, R0, exit
	MOVD  R0, R19
	MOVD  R22, R1
	MOVD  R24, R2
	MOVD  SYS_connect, R8
	SVC
	CBNZ  R0, exit

receive:
	// recvmsg(R19, {iov 1 byte, control 32 bytes}, MSG_CMSG_CLOEXEC)
	MOVD ZR, 0(R22)  // msg_name
	MOVD ZR, 8(R22)  // msg_namelen
	ADD  $128, R22, R1
	MOVD R1, 16(R22) // msg_iov
	MOVD $1, R2
	MOVD R2, 24(R22) // msg_iovlen
	ADD  $160, R22, R1
	MOVD R1, 32(R22) // msg_control
	MOVD $32, R1
	MOVD R1, 40(R22) // msg_controllen
	MOVD ZR, 48(R22) // msg_flags
	ADD  $144, R22, R1
	MOVD R1, 128(R22) // iov_base
	MOVD R2, 136(R22) // iov_len
	MOVD R19, R0
	MOVD R22, R1
	MOVD $0x40000000, R2
	MOVD SYS_recvmsg, R8
	SVC
	CMP  $1, R0
	BNE  exit
	MOVD 160(R22), R0 // cmsg_len: four descriptors
	CMP  $32, R0
	BNE  exit
	MOVD R19, R0
	MOVD SYS_close, R8
	SVC

	// The description, on the stack from R22.
	MOVD $0x6275747373797372, R0 // "rsysstub"
	MOVD R0, 0(R22)
	MOVD SYS_getpid, R8
	SVC
	MOVD R0, 8(R22)
	MOVW 176(R22), R19
	MOVD R19, 16(R22) // syscall_fd
	MOVW 180(R22), R21
	MOVD R21, 24(R22) // data_fd
	MOVW 184(R22), R0
	MOVD R0, 32(R22)  // memfd
	MOVW 188(R22), R0
	MOVD R0, 40(R22)  // connection_fd
	MOVD ZR, R0
	MOVD ZR, R1
	ADD  $48, R22, R2
	MOVD $8, R3
	MOVD SYS_rt_sigprocmask, R8
	SVC
	MOVD 0(R20), R23  // argc
	MOVD R23, 56(R22)
	ADD  $8, R20, R20
	ADD  R23<<3, R20, R1
	ADD  $8, R1, R1   // envp
	MOVD ZR, R2

count:
	MOVD (R1), R3
	CBZ  R3, counted
	ADD  $8, R1, R1
	ADD  $1, R2, R2
	JMP  count

counted:
	MOVD R2, 64(R22) // envc
	ADD  R2, R23, R23
	ADR  start, R0
	MOVD R0, 72(R22)
	MOVD R21, R0
	MOVD R22, R1
	MOVD $80, R2
	MOVD SYS_write, R8
	SVC
	CMP  $80, R0
	BNE  exit

strings:
	// What argv and envp point to, each behind its length.
	CBZ  R23, described
	MOVD (R20), R24
	ADD  $8, R20, R20
	CBZ  R24, strings // argv's end
	SUB  $1, R23, R23
	MOVD R24, R25

length:
	MOVBU (R25), R0
	CBZ   R0, measured
	ADD   $1, R25, R25
	JMP   length

measured:
	SUB  R24, R25, R25
	MOVD R25, 0(R22)
	MOVD R21, R0
	MOVD R22, R1
	MOVD $8, R2
	MOVD SYS_write, R8
	SVC
	CMP  $8, R0
	BNE  exit
	CBZ  R25, strings
	MOVD R21, R0
	MOVD R24, R1
	MOVD R25, R2
	MOVD SYS_write, R8
	SVC
	CMP  R25, R0
	BNE  exit
	JMP  strings

described:
	MOVD R19, R0
	MOVD ZR, R1
	MOVD ZR, R2
	JMP  task

	// The mark by which server.go finds the end.
	WORD $0x73722d2d
	WORD $0x2d2d7379
	WORD $0x6e652d2d
	WORD $0x2d2d2d64

// func serverAddress() uintptr
TEXT ·serverAddress(SB), NOSPLIT, $0-8
	MOVD $·server(SB), R0
	MOVD R0, ret+0(FP)
	RET

// func ticks() uint64
TEXT ·ticks(SB), NOSPLIT, $0-8
	MRS  CNTVCT_EL0, R0
	MOVD R0, ret+0(FP)
	RET
