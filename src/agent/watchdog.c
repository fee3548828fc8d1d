/* watchdog.c - see watchdog.h. The child does nothing but poll and kill: no allocation, no lock. */
#include "agent/watchdog.h"

#include <fcntl.h>
#include <glib.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

static int beat_fd = -1;

static _Noreturn void watch(int fd, pid_t agent)
{
	char beats[64];
	struct pollfd p = { .fd = fd, .events = POLLIN };
	prctl(PR_SET_NAME, "virtcft-dog");
	signal(SIGINT, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	if (read(fd, beats, 1) <= 0) /* the first beat: until then the agent is starting */
		_exit(0);
	for (;;) {
		int n = poll(&p, 1, WATCHDOG_PATIENCE_MS);
		if (n == 0) {
			static const char text[] = "virtcftd: the loop hangs; the watchdog ends the agent\n";
			(void)!write(STDERR_FILENO, text, sizeof text - 1);
			kill(agent, SIGKILL);
			_exit(1);
		}
		if (n > 0 && read(fd, beats, sizeof beats) <= 0)
			_exit(0);
	}
}

bool watchdog_start(void)
{
	int fds[2];
	pid_t agent = getpid();
	if (pipe(fds) < 0)
		return false;
	pid_t child = fork();
	if (child == 0) {
		close(fds[1]);
		watch(fds[0], agent);
	}
	close(fds[0]);
	beat_fd = fds[1];
	return child > 0 && fcntl(beat_fd, F_SETFD, FD_CLOEXEC) == 0;
}

void watchdog_beat(void)
{
	if (beat_fd >= 0)
		(void)!write(beat_fd, ".", 1);
}

static gboolean beat(gpointer data)
{
	(void)data;
	watchdog_beat();
	return G_SOURCE_CONTINUE;
}

void watchdog_attach(void)
{
	beat(NULL);
	g_timeout_add_full(G_PRIORITY_HIGH, WATCHDOG_BEAT_MS, beat, NULL, NULL);
}
