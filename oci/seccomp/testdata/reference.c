/* A server for reference_test.go: makes libseccomp's program for the profiles it reads on stdin, a line at a time.
 *
 *   profile DEFAULT_ACTION NATIVE_ARCH
 *   arch NAME
 *   optimize
 *   rule ACTION NAME N [ARG OP A B]...   answers "ok", "unknown" or "refused ERRNO"
 *   end                                  answers "program HEX", as libseccomp wrote it, in the filter's byte order
 *   resolve ARCH NAME                    answers "number N", "none" for a pseudo number, or "unknown"
 */
#include <errno.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static scmp_filter_ctx ctx;

static void fail(const char *what, int rc)
{
	printf("failed %s: %s\n", what, strerror(-rc));
	fflush(stdout);
	exit(1);
}

static void add_rule(char *p)
{
	struct scmp_arg_cmp args[6];
	char name[128];
	unsigned action, n, i;
	int used, nr, rc;

	if (sscanf(p, "%x %127s %u%n", &action, name, &n, &used) != 3 || n > 6)
		fail("rule", -EINVAL);
	p += used;
	for (i = 0; i < n; i++) {
		unsigned arg, op;
		unsigned long long a, b;

		if (sscanf(p, "%u %u %llx %llx%n", &arg, &op, &a, &b, &used) != 4)
			fail("rule's args", -EINVAL);
		p += used;
		args[i] = (struct scmp_arg_cmp){ arg, op, a, b };
	}
	nr = seccomp_syscall_resolve_name(name);
	if (nr == __NR_SCMP_ERROR) {
		puts("unknown");
		return;
	}
	rc = seccomp_rule_add_array(ctx, action, nr, n, args);
	if (rc < 0)
		printf("refused %d\n", -rc);
	else
		puts("ok");
}

static void export(void)
{
	FILE *f = tmpfile();
	int c, rc = seccomp_export_bpf(ctx, fileno(f));

	if (rc < 0)
		fail("export", rc);
	rewind(f);
	fputs("program ", stdout);
	while ((c = getc(f)) != EOF)
		printf("%02x", c);
	puts("");
	fclose(f);
	seccomp_release(ctx);
}

int main(void)
{
	static char line[1 << 16];

	seccomp_api_set(6);
	while (fgets(line, sizeof line, stdin)) {
		char a[128], b[128];
		unsigned action;
		int rc;

		if (sscanf(line, "profile %x %127s", &action, a) == 2) {
			uint32_t native = seccomp_arch_resolve_name(a);

			ctx = seccomp_init(action);
			if (!ctx)
				fail("init", -EINVAL);
			if (native != seccomp_arch_native()) {
				rc = seccomp_arch_remove(ctx, SCMP_ARCH_NATIVE);
				if (rc < 0)
					fail("remove", rc);
				rc = seccomp_arch_add(ctx, native);
				if (rc < 0)
					fail("native", rc);
			}
		} else if (sscanf(line, "arch %127s", a) == 1) {
			rc = seccomp_arch_add(ctx, seccomp_arch_resolve_name(a));
			if (rc < 0 && rc != -EEXIST)
				fail("arch", rc);
		} else if (!strncmp(line, "optimize", 8)) {
			seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
		} else if (!strncmp(line, "rule ", 5)) {
			add_rule(line + 5);
		} else if (!strncmp(line, "end", 3)) {
			export();
		} else if (sscanf(line, "resolve %127s %127s", a, b) == 2) {
			int nr = seccomp_syscall_resolve_name_arch(seccomp_arch_resolve_name(a), b);

			if (nr == __NR_SCMP_ERROR)
				puts("unknown");
			else if (nr < 0)
				puts("none");
			else
				printf("number %d\n", nr);
		} else {
			fail(line, -EINVAL);
		}
		fflush(stdout);
	}
	return 0;
}
