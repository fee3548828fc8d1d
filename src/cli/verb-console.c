/* verb-console.c - virtcft console VM: join the VM's serial port to this terminal.
 *
 *   stdin ──(raw; Ctrl-] ends)──► console socket of QEMU ──► stdout
 *
 * The agent only says where the socket is. Without a terminal bytes are passed both ways as they are; when stdin ends output still comes, until
 * the VM or the reader ends. */
#include "cli/control-client.h"
#include "cli/verbs.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#define ESCAPE 0x1d   /* Ctrl-] */

static bool write_all(int fd, const char *data, size_t n)
{
	while (n) {
		ssize_t k = write(fd, data, n);
		if (k < 0 && errno == EAGAIN)
			poll(&(struct pollfd){ .fd = fd, .events = POLLOUT }, 1, -1);
		else if (k < 0 && errno != EINTR)
			return false;
		data += k > 0 ? k : 0;
		n -= k > 0 ? (size_t)k : 0;
	}
	return true;
}

enum passed { PASSED, PASSED_END, PASSED_ESCAPE };

/* Pass what is there; up to the escape, if this is a terminal. */
static enum passed pass(int from, int to, bool terminal)
{
	char buffer[4096];
	ssize_t n = read(from, buffer, sizeof buffer);
	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return PASSED;
	if (n <= 0)
		return PASSED_END;
	const char *escape = terminal ? memchr(buffer, ESCAPE, (size_t)n) : NULL;
	if (!write_all(to, buffer, escape ? (size_t)(escape - buffer) : (size_t)n))
		return PASSED_END;
	return escape ? PASSED_ESCAPE : PASSED;
}

/* True: the user ended it; false: the other side did. */
static bool join(int console, bool terminal)
{
	struct pollfd fds[] = { { .fd = STDIN_FILENO, .events = POLLIN }, { .fd = console, .events = POLLIN } };
	for (;;) {
		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			return false;
		if (fds[1].revents && pass(console, STDOUT_FILENO, false) == PASSED_END)
			return false;
		if (!fds[0].revents)
			continue;
		enum passed p = pass(STDIN_FILENO, console, terminal);
		if (p == PASSED_ESCAPE)
			return true;
		if (p == PASSED_END)
			fds[0].fd = -1;
	}
}

static int converse(const struct cli *cli, int console)
{
	struct termios before, raw;
	bool terminal = tcgetattr(STDIN_FILENO, &before) == 0;
	if (terminal) {
		fprintf(stderr, "console of %s; Ctrl-] ends\n", cli->arguments[0]);
		raw = before;
		cfmakeraw(&raw);
		tcsetattr(STDIN_FILENO, TCSANOW, &raw);
	}
	bool ended = join(console, terminal);
	if (terminal) {
		tcsetattr(STDIN_FILENO, TCSANOW, &before);
		fprintf(stderr, "\n%s\n", ended ? "left" : "the console has ended");
	}
	return CLI_OK;
}

int verb_console(const struct cli *cli)
{
	GError *error = NULL;
	json_t *answer = control_call(cli->socket, json_pack("{s:s, s:s}", "verb", "console", "vm", cli->arguments[0]), NULL, NULL, &error);
	if (!answer)
		return cli_fail(cli, error);
	const char *path = json_string_value(json_object_get(answer, "socket"));
	int console = control_connect(path ? path : "", &error);
	json_decref(answer);
	if (console < 0)
		return cli_fail(cli, error);
	int status = converse(cli, console);
	close(console);
	return status;
}
