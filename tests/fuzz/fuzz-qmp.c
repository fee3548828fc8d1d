/* fuzz-qmp.c - whatever QEMU says: the greeting, the answers and events are taken, or the connection is given up with an error (Q1-Q3).
 *
 * The whole input is in the socket, and behind it the end: so no wait is longer than the reading. */
#include "vm/qmp.h"
#include "fuzz.h"

#include <sys/socket.h>
#include <unistd.h>

static void demand_error(gboolean ok, GError **error)
{
	demand(ok == (*error == NULL) && (ok || g_utf8_validate((*error)->message, -1, NULL)));
	g_clear_error(error);
}

static void converse(struct qmp *q)
{
	GError *error = NULL;
	json_t *value = NULL;
	nsec_t deadline = clock_now() + 5 * NSEC_PER_SEC;
	gboolean ok = qmp_greet(q, deadline, &error);
	demand_error(ok, &error);
	for (int i = 0; ok && i < 4; i++) {
		ok = qmp_command(q, "query-status", i & 1 ? json_pack("{s:b}", "x", 1) : NULL, deadline, &value, &error);
		demand((value != NULL) == ok);
		demand_error(ok, &error);
		g_clear_pointer(&value, json_decref);
	}
	demand(memchr(qmp_events(q)->migration, 0, sizeof qmp_events(q)->migration) != NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	int pair[2];
	demand(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	struct qmp *q = qmp_new(pair[0]);
	if (n)
		demand(send(pair[1], data, n, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)n);
	shutdown(pair[1], SHUT_WR);
	converse(q);
	qmp_free(q);
	close(pair[1]);
	return 0;
}
