#include "textflag.h"

// The server. See server.go for what it does, and for the layouts that the
// numbers here are of. It is copied out of this binary and run elsewhere: no
// symbol, no stack but its own, no Go.
//
//	BX   the channel
//	R12  the step being run        R13  steps left, this one included
//	R15  the stack pointer, by which a child finds that it is one
//
// A system call preserves everything but AX, CX and R11.

#define SYS_read            $0
#define SYS_write           $1
#define SYS_close           $3
#define SYS_rt_sigprocmask  $14
#define SYS_getpid          $39
#define SYS_socket          $41
#define SYS_connect         $42
#define SYS_recvmsg         $47
#define SYS_gettid          $186
#define SYS_futex           $202
#define SYS_exit_group      $231
#define SYS_set_robust_list $273

TEXT ·server(SB), NOSPLIT|NOFRAME|TOPFRAME, $0-0
	// The kernel starts a program with all registers zero; a task's
	// trampoline gives the channel, which is never descriptor 0.
	TESTQ DI, DI
	JZ    stub

task:
	// DI: channel; SI: robust list head or 0, the futex word behind it; DX: request or 0.
	MOVQ DI, BX
	MOVQ DX, R14
	ANDQ $~15, SP
	SUBQ $64, SP
	MOVQ SP, R15
	XORL AX, AX
	TESTQ SI, SI
	JZ    respond // the hello
	MOVQ  SI, R12
	MOVL  SYS_gettid, AX
	SYSCALL
	ORL   $0x80000000, AX // FUTEX_WAITERS: the kernel is to wake the monitor
	MOVL  AX, 24(R12)
	MOVQ  R12, DI
	MOVL  $24, SI
	MOVL  SYS_set_robust_list, AX
	SYSCALL
	TESTQ R14, R14
	JNZ  born

respond:
	MOVQ AX, 0(SP)
	MOVL BX, DI
	MOVQ SP, SI
	MOVL $8, DX
	MOVL SYS_write, AX
	SYSCALL
	CMPQ AX, $8
	JNE  exit

serve:
	MOVL BX, DI
	MOVQ SP, SI
	MOVL $56, DX
	XORL AX, AX
	SYSCALL
	CMPQ AX, $-4 // EINTR
	JEQ  serve
	CMPQ AX, $56
	JNE  exit
	MOVQ 0(SP), AX
	CMPQ AX, $-1
	JEQ  program
	MOVQ 8(SP), DI
	MOVQ 16(SP), SI
	MOVQ 24(SP), DX
	MOVQ 32(SP), R10
	MOVQ 40(SP), R8
	MOVQ 48(SP), R9
	SYSCALL
	CMPQ SP, R15
	JEQ  respond

trampoline:
	// A child, on the stack that it was given: a function and its arguments.
	MOVQ 0(SP), AX
	MOVQ 8(SP), DI
	MOVQ 16(SP), SI
	MOVQ 24(SP), DX
	JMP  AX

exit:
	MOVL $125, DI // exitServer
	MOVL SYS_exit_group, AX
	SYSCALL
	UD2 // where a filter forbids even that

born:
	// Nobody is greeted; the word tells that it is set. Then the program, and the end.
	LEAQ 24(R12), DI
	MOVL $1, SI // FUTEX_WAKE
	MOVL $0x7fffffff, DX
	MOVL SYS_futex, AX
	SYSCALL
	MOVQ 8(R14), R12
	MOVQ 16(R14), R13
	JMP  step

program:
	MOVQ 8(SP), R12
	MOVQ 16(SP), R13

step:
	TESTQ R13, R13
	JLE   done
	MOVQ  56(R12), CX
	MOVQ  8(R12), DI
	MOVQ  16(R12), SI
	MOVQ  24(R12), DX
	MOVQ  32(R12), R10
	MOVQ  40(R12), R8
	MOVQ  48(R12), R9
	TESTL CX, CX
	JZ    call

#define LOAD(bit, reg) \
	TESTL $(1<<bit), CX;        \
	JZ    2(PC);                \
	MOVQ  (reg), reg;           \
	TESTL $(0x100<<bit), CX;    \
	JZ    2(PC);                \
	MOVLQSX (reg), reg

	LOAD(0, DI)
	LOAD(1, SI)
	LOAD(2, DX)
	LOAD(3, R10)
	LOAD(4, R8)
	LOAD(5, R9)

call:
	MOVQ  0(R12), AX
	TESTQ AX, AX
	JLT   pseudo
	SYSCALL
	CMPQ  SP, R15
	JNE   trampoline

result:
	MOVQ AX, 80(R12)
	MOVQ AX, R8
	RDTSC
	SHLQ $32, DX
	ORQ  DX, AX
	MOVQ AX, 88(R12)
	MOVL 72(R12), CX
	MOVQ R8, AX
	CMPQ AX, $-4095
	JCS  advance // below, unsigned: no error
	NEGQ AX
	MOVL 76(R12), CX
	MOVQ 64(R12), DX

tolerate:
	TESTQ DX, DX
	JZ    done
	CMPB  DL, AL
	JEQ   advance
	CMPB  DL, $0xff
	JEQ   advance
	SHRQ  $8, DX
	JMP   tolerate

advance:
	INCQ   CX
	SUBQ   CX, R13
	IMUL3Q $96, CX, CX
	ADDQ   CX, R12
	JMP    step

done:
	MOVQ R13, AX
	JMP  respond

pseudo:
	CMPQ AX, $-1
	JNE  store32
	ANDQ SI, DI
	XORL AX, AX
	CMPQ DI, DX
	JEQ  result
	MOVQ R10, AX
	NEGQ AX
	JMP  result

store32:
	CMPQ AX, $-2
	JNE  store64
	MOVL SI, (DI)
	XORL AX, AX
	JMP  result

store64:
	CMPQ AX, $-3
	MOVQ $-38, AX // ENOSYS
	JNE  result
	MOVQ SI, (DI)
	XORL AX, AX
	JMP  result

stub:
	// A program just started. R12: argc, argv, a null, envp, a null.
	MOVQ SP, R12
	ANDQ $~15, SP
	SUBQ $256, SP
	MOVL $3, BX
	MOVQ 0(R12), CX
	LEAQ 16(R12)(CX*8), R13 // envp

environment:
	// The longest variable that is no match is read to its 16th byte: what
	// follows the last one on the stack is longer than that.
	MOVQ 0(R13), SI
	ADDQ $8, R13
	TESTQ SI, SI
	JZ   receive
	MOVQ $0x5554535f53595352, AX // "RSYS_STU"
	CMPQ 0(SI), AX
	JNE  environment
	MOVQ $0x54454b434f535f42, AX // "B_SOCKET"
	CMPQ 8(SI), AX
	JNE  environment
	CMPB 16(SI), $0x3d // "="
	JNE  environment

	// connect(socket(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC, 0), the path behind it)
	MOVW $1, 0(SP)
	XORL DX, DX

path:
	CMPQ DX, $108
	JEQ  exit
	MOVB 17(SI)(DX*1), AX
	MOVB AX, 2(SP)(DX*1)
	INCQ DX
	TESTB AX, AX
	JNZ  path
	LEAQ 2(DX), R14
	MOVL $1, DI
	MOVL $0x80001, SI
	XORL DX, DX
	MOVL SYS_socket, AX
	SYSCALL
	TESTQ AX, AX
	JLT  exit
	MOVQ AX, BX
	MOVQ BX, DI
	MOVQ SP, SI
	MOVQ R14, DX
	MOVL SYS_connect, AX
	SYSCALL
	TESTQ AX, AX
	JNZ  exit

receive:
	// recvmsg(BX, {iov 1 byte, control 32 bytes}, MSG_CMSG_CLOEXEC)
	XORL AX, AX
	LEAQ 128(SP), CX
	MOVQ AX, 0(SP)   // msg_name
	MOVQ AX, 8(SP)   // msg_namelen
	MOVQ CX, 16(SP)  // msg_iov
	MOVQ $1, 24(SP)  // msg_iovlen
	LEAQ 160(SP), DX
	MOVQ DX, 32(SP)  // msg_control
	MOVQ $32, 40(SP) // msg_controllen
	MOVQ AX, 48(SP)  // msg_flags
	LEAQ 144(SP), DX
	MOVQ DX, 128(SP) // iov_base
	MOVQ $1, 136(SP) // iov_len
	MOVQ BX, DI
	MOVQ SP, SI
	MOVL $0x40000000, DX
	MOVL SYS_recvmsg, AX
	SYSCALL
	CMPQ AX, $1
	JNE  exit
	CMPQ 160(SP), $32 // cmsg_len: four descriptors
	JNE  exit
	MOVQ BX, DI
	MOVL SYS_close, AX
	SYSCALL

	// The description, on the stack from SP.
	MOVQ    $0x6275747373797372, AX // "rsysstub"
	MOVQ    AX, 0(SP)
	MOVL    SYS_getpid, AX
	SYSCALL
	MOVQ    AX, 8(SP)
	MOVLQSX 176(SP), AX
	MOVQ    AX, 16(SP) // syscall_fd
	MOVQ    AX, BX
	MOVLQSX 180(SP), AX
	MOVQ    AX, 24(SP) // data_fd
	MOVQ    AX, R13
	MOVLQSX 184(SP), AX
	MOVQ    AX, 32(SP) // memfd
	MOVLQSX 188(SP), AX
	MOVQ    AX, 40(SP) // connection_fd
	XORL    DI, DI
	XORL    SI, SI
	LEAQ    48(SP), DX
	MOVL    $8, R10
	MOVL    SYS_rt_sigprocmask, AX
	SYSCALL
	MOVQ    0(R12), CX // argc
	MOVQ    CX, 56(SP)
	ADDQ    $8, R12
	LEAQ    8(R12)(CX*8), DX // envp
	XORL    CX, CX

count:
	CMPQ (DX)(CX*8), $0
	JEQ  counted
	INCQ CX
	JMP  count

counted:
	LEAQ ·server(SB), AX // relative to the instruction, so it holds for a copy
	MOVQ AX, 72(SP)
	MOVQ CX, 64(SP) // envc
	MOVQ 56(SP), R14
	ADDQ CX, R14
	MOVQ R13, DI
	MOVQ SP, SI
	MOVL $80, DX
	MOVL SYS_write, AX
	SYSCALL
	CMPQ AX, $80
	JNE  exit

strings:
	// What argv and envp point to, each behind its length.
	TESTQ R14, R14
	JZ    described
	MOVQ  0(R12), R8
	ADDQ  $8, R12
	TESTQ R8, R8
	JZ    strings // argv's end
	DECQ  R14
	XORL  DX, DX

length:
	CMPB (R8)(DX*1), $0
	JEQ  measured
	INCQ DX
	JMP  length

measured:
	MOVQ DX, R9
	MOVQ DX, 0(SP)
	MOVQ R13, DI
	MOVQ SP, SI
	MOVL $8, DX
	MOVL SYS_write, AX
	SYSCALL
	CMPQ AX, $8
	JNE  exit
	TESTQ R9, R9
	JZ   strings
	MOVQ R13, DI
	MOVQ R8, SI
	MOVQ R9, DX
	MOVL SYS_write, AX
	SYSCALL
	CMPQ AX, R9
	JNE  exit
	JMP  strings

described:
	MOVQ BX, DI
	XORL SI, SI
	XORL DX, DX
	JMP  task

	// The mark by which server.go finds the end.
	QUAD $0x2d2d737973722d2d // "--rsys--"
	QUAD $0x2d2d2d646e652d2d // "--end---"

// func serverAddress() uintptr
TEXT ·serverAddress(SB), NOSPLIT, $0-8
	LEAQ ·server(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// func ticks() uint64
TEXT ·ticks(SB), NOSPLIT, $0-8
	RDTSC
	SHLQ $32, DX
	ORQ  DX, AX
	MOVQ AX, ret+0(FP)
	RET
