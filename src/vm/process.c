/* process.c - see process.h. Between fork() and execve() only calls that are safe in a process with threads. */
#include "vm/process.h"
#include "vm/vmm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define LOG_TAIL 600

struct plan { char **argv, **env; const int *keep; unsigned keep_count; int null, log, report; pid_t parent; const struct identity *who; };

static void keep_descriptors(const struct plan *p)
{
	syscall(SYS_close_range, 3u, ~0u, CLOSE_RANGE_CLOEXEC);
	for (unsigned i = 0; i < p->keep_count; i++)
		if (p->keep[i] >= 0)
			fcntl(p->keep[i], F_SETFD, 0);
}

/* The child. Never returns; why it could not start goes to `report`. */
static _Noreturn void become(const struct plan *p)
{
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	setsid();
	bool ready = identity_become(p->who, SIGKILL);
	if (ready && getppid() != p->parent)
		_exit(127); /* the parent died before prctl() */
	if (ready && dup2(p->null, 0) == 0 && dup2(p->log, 1) == 1 && dup2(p->log, 2) == 2) {
		keep_descriptors(p);
		execve(p->argv[0], p->argv, p->env);
	}
	int why = errno;
	_exit(write(p->report, &why, sizeof why) == sizeof why ? 127 : 126);
}

/* Waits until the child is the new program; 0 or the errno that it reports. */
static int wait_for_exec(int report)
{
	int why = 0;
	ssize_t n;
	do
		n = read(report, &why, sizeof why);
	while (n < 0 && errno == EINTR);
	return n == sizeof why ? why : 0;
}

static gboolean launch(struct process *process, struct plan *p, GError **error)
{
	int report[2];
	if (pipe2(report, O_CLOEXEC) != 0) {
		g_set_error(error, VMM_ERROR, VMM_ERROR_START, "pipe: %s", g_strerror(errno));
		return FALSE;
	}
	p->report = report[1];
	p->parent = getpid();
	pid_t pid = fork();
	if (pid == 0)
		become(p);
	int why = pid < 0 ? errno : 0;
	close(report[1]);
	if (pid > 0)
		why = wait_for_exec(report[0]);
	close(report[0]);
	if (why) {
		if (pid > 0)
			waitpid(pid, NULL, 0);
		g_set_error(error, VMM_ERROR, VMM_ERROR_START, "%s: cannot be started: %s", p->argv[0], g_strerror(why));
		return FALSE;
	}
	*process = (struct process){ .pid = pid, .pidfd = (int)syscall(SYS_pidfd_open, pid, 0), .log = p->log };
	return TRUE;
}

gboolean process_start(struct process *process, char **argv, char **env, const int *keep, unsigned keep_count, const char *log_path,
                       const struct identity *who, GError **error)
{
	struct plan p = { .argv = argv, .env = env, .keep = keep, .keep_count = keep_count, .who = who };
	unlink(log_path); /* the folder is the child's: what has the name may be a link */
	p.null = open("/dev/null", O_RDWR | O_CLOEXEC);
	p.log = open(log_path, O_RDWR | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0600);
	gboolean ok = FALSE;
	if (p.null < 0 || p.log < 0)
		g_set_error(error, VMM_ERROR, VMM_ERROR_START, "%s: %s", p.null < 0 ? "/dev/null" : log_path, g_strerror(errno));
	else
		ok = launch(process, &p, error);
	if (p.null >= 0)
		close(p.null);
	if (!ok && p.log >= 0)
		close(p.log);
	return ok;
}

void process_kill(const struct process *process)
{
	if (process->pid <= 0)
		return;
	if (process->pidfd >= 0)
		syscall(SYS_pidfd_send_signal, process->pidfd, SIGKILL, NULL, 0);
	else
		kill(process->pid, SIGKILL);
}

void process_end(struct process *process)
{
	if (process->pid <= 0)
		return;
	process_kill(process);
	while (waitpid(process->pid, NULL, 0) < 0 && errno == EINTR)
		;
	if (process->pidfd >= 0)
		close(process->pidfd);
	close(process->log);
	*process = (struct process){ .pidfd = -1, .log = -1 };
}

char *process_log(const struct process *process)
{
	char text[LOG_TAIL + 1];
	off_t size = process->log >= 0 ? lseek(process->log, 0, SEEK_END) : 0;
	ssize_t n = size > 0 ? pread(process->log, text, LOG_TAIL, size > LOG_TAIL ? size - LOG_TAIL : 0) : 0;
	text[n > 0 ? n : 0] = 0;
	for (char *c = text; *c; c++)
		if ((unsigned char)*c < ' ')
			*c = ' ';
	return g_strdup(g_strstrip(text));
}
