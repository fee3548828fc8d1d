/* client.h - a client of the control socket, in the process and on the thread of the agent that it asks: the loop turns while it waits. */
#ifndef TEST_AGENT_CLIENT_H
#define TEST_AGENT_CLIENT_H

#include <glib.h>
#include <jansson.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PATIENCE_MS 20000u

static inline int ask(const char *path, json_t *request)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	g_autofree char *line = json_dumps(request, JSON_COMPACT);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	g_strlcpy(address.sun_path, path, sizeof address.sun_path);
	g_assert_cmpint(connect(fd, (struct sockaddr *)&address, sizeof address), ==, 0);
	g_assert_cmpint(send(fd, line, strlen(line), 0), ==, strlen(line));
	g_assert_cmpint(send(fd, "\n", 1, 0), ==, 1);
	json_decref(request);
	return fd;
}

static inline gboolean too_late(gpointer data)
{
	(void)data;
	g_assert_not_reached();
}

/* What comes on the socket while the loop turns, a line; NULL: it has been closed. */
static inline char *next_line(int fd)
{
	GString *line = g_string_new(NULL);
	guint limit = g_timeout_add(PATIENCE_MS, too_late, NULL);
	char c = 0;
	ssize_t n = -1;
	while (c != '\n' && n != 0) {
		n = recv(fd, &c, 1, MSG_DONTWAIT);
		if (n == 1)
			g_string_append_c(line, c);
		else if (n < 0)
			g_main_context_iteration(NULL, TRUE);
	}
	g_source_remove(limit);
	return g_string_free(line, n == 0);
}

/* The object with `ok`, behind those that show progress; the client is gone. */
static inline json_t *answer(int fd)
{
	json_t *object = NULL;
	while (!json_object_get(object, "ok")) {
		g_autofree char *line = next_line(fd);
		json_decref(object);
		object = json_loads(line ? line : "", 0, NULL);
		g_assert_nonnull(object);
	}
	close(fd);
	return object;
}

static inline const char *text_of(json_t *object, const char *key) { return json_string_value(json_object_get(object, key)); }

#endif
