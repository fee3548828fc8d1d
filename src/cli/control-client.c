/* control-client.c - see control-client.h. */
#include "cli/control-client.h"

#include <errno.h>
#include <gio/gio.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int control_connect(const char *path, GError **error)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (g_strlcpy(address.sun_path, path, sizeof address.sun_path) >= sizeof address.sun_path)
		errno = ENAMETOOLONG;
	else if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
		return fd;
	g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "%s: %s", path, g_strerror(errno));
	if (fd >= 0)
		close(fd);
	return -1;
}

static int connect_agent(const char *path, GError **error)
{
	int fd = control_connect(path, error);
	if (fd < 0 && error && g_error_matches(*error, G_IO_ERROR, G_IO_ERROR_PERMISSION_DENIED))
		g_prefix_error(error, "the agent answers root, and for reading members of its control_group; this is user %u: ", (unsigned)geteuid());
	else if (fd < 0)
		g_prefix_error(error, "no agent answers (is virtcftd running?): ");
	return fd;
}

static gboolean send_line(int fd, json_t *request, GError **error)
{
	char *text = json_dumps(request, JSON_COMPACT);
	g_autofree char *line = g_strconcat(text ? text : "", "\n", NULL);
	size_t n = strlen(line), sent = 0;
	free(text);
	while (sent < n) {
		ssize_t k = send(fd, line + sent, n - sent, MSG_NOSIGNAL);
		if (k < 0 && errno != EINTR) {
			g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "the agent does not listen: %s", g_strerror(errno));
			return FALSE;
		}
		sent += k > 0 ? (size_t)k : 0;
	}
	return TRUE;
}

/* The next object; NULL with error. */
static json_t *read_object(FILE *in, char **line, size_t *room, GError **error)
{
	json_error_t why;
	ssize_t n = getline(line, room, in);
	if (n <= 0) {
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_CLOSED, "the agent has ended");
		return NULL;
	}
	json_t *object = json_loadb(*line, (size_t)n, 0, &why);
	if (!json_is_object(object)) {
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "the agent's answer is not understood: %s", object ? "no object" : why.text);
		g_clear_pointer(&object, json_decref);
	}
	return object;
}

static json_t *read_answer(FILE *in, control_listener listener, void *user, GError **error)
{
	char *line = NULL;
	size_t room = 0;
	json_t *object;
	while ((object = read_object(in, &line, &room, error)) && !json_object_get(object, "ok")) {
		if (listener)
			listener(object, user);
		json_decref(object);
	}
	free(line);
	if (object && !json_is_true(json_object_get(object, "ok"))) {
		const char *why = json_string_value(json_object_get(object, "error"));
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "%s", why ? why : "the agent refuses");
		g_clear_pointer(&object, json_decref);
	}
	return object;
}

json_t *control_call(const char *path, json_t *request, control_listener listener, void *user, GError **error)
{
	json_t *answer = NULL;
	int fd = connect_agent(path, error);
	FILE *in = fd >= 0 ? fdopen(fd, "r") : NULL;
	if (in && send_line(fd, request, error))
		answer = read_answer(in, listener, user, error);
	if (in)
		fclose(in);
	json_decref(request);
	return answer;
}
