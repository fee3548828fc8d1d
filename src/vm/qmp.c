/* qmp.c - see qmp.h. One JSON object a line; a line is a greeting, a reply (with our number as id) or an event. */
#include "vm/qmp.h"
#include "vm/vmm.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define LINE_MAX_BYTES (16u << 20)   /* a longer line is no QMP */

struct qmp {
	int fd;
	GByteArray *in;             /* bytes of a line that is not whole yet */
	size_t searched;            /* of them, known to have no end of line */
	uint64_t next_id;
	bool greeted, open;
	bool prepared;              /* all of the command but its last byte has been sent (Q9) */
	char command[40];           /* the open command's name, for messages */
	json_t *reply;              /* to the open command */
	struct qmp_events events;
};

struct qmp *qmp_new(int socket)
{
	struct qmp *q = g_new0(struct qmp, 1);
	q->fd = socket;
	q->in = g_byte_array_sized_new(4096);
	return q;
}

void qmp_free(struct qmp *q)
{
	if (!q)
		return;
	close(q->fd);
	g_byte_array_unref(q->in);
	json_decref(q->reply);
	g_free(q);
}

int qmp_fd(const struct qmp *q) { return q->fd; }
const struct qmp_events *qmp_events(const struct qmp *q) { return &q->events; }
bool qmp_open(const struct qmp *q) { return q->open; }
bool qmp_replied(const struct qmp *q) { return q->reply != NULL; }

int deadline_ms(nsec_t deadline)
{
	nsec_t left = deadline - clock_now();
	return left <= 0 ? 0 : (int)MIN((left + NSEC_PER_MSEC - 1) / NSEC_PER_MSEC, G_MAXINT);
}

/* ---- what comes in ---- */

static int64_t event_time(const json_t *message)
{
	const json_t *t = json_object_get(message, "timestamp");
	return json_integer_value(json_object_get(t, "seconds")) * G_USEC_PER_SEC + json_integer_value(json_object_get(t, "microseconds"));
}

static void take_event(struct qmp_events *e, const char *name, const json_t *message)
{
	if (!strcmp(name, "STOP")) {
		e->stops++;
		e->stop_us = event_time(message);
		e->running = false;
	} else if (!strcmp(name, "RESUME")) {
		e->resumes++;
		e->resume_us = event_time(message);
		e->running = true;
		e->off = false;
	} else if (!strcmp(name, "SHUTDOWN") || !strcmp(name, "GUEST_PANICKED")) {
		e->off = true;
	} else if (!strcmp(name, "MIGRATION")) {
		const char *status = json_string_value(json_object_get(json_object_get(message, "data"), "status"));
		g_strlcpy(e->migration, status ? status : "", sizeof e->migration);
	}
}

static gboolean take_line(struct qmp *q, const char *line, size_t n, GError **error)
{
	json_error_t where;
	json_t *message = json_loadb(line, n, 0, &where);
	if (!json_is_object(message)) {
		g_set_error(error, VMM_ERROR, VMM_ERROR_GONE, "QMP: not a JSON object (%s)", message ? "another value" : where.text);
		json_decref(message);
		return FALSE;
	}
	const char *event = json_string_value(json_object_get(message, "event"));
	json_t *id = json_object_get(message, "id");
	if (event)
		take_event(&q->events, event, message);
	else if (json_object_get(message, "QMP"))
		q->greeted = true;
	else if (q->open && !q->reply && json_is_integer(id) && (uint64_t)json_integer_value(id) == q->next_id)
		q->reply = json_incref(message);
	json_decref(message);
	return TRUE;
}

static gboolean take_lines(struct qmp *q, GError **error)
{
	uint8_t *end;
	while ((end = memchr(q->in->data + q->searched, '\n', q->in->len - q->searched))) {
		size_t n = (size_t)(end - q->in->data);
		bool blank = n == 0 || (n == 1 && q->in->data[0] == '\r');
		if (!blank && !take_line(q, (const char *)q->in->data, n, error))
			return FALSE;
		g_byte_array_remove_range(q->in, 0, (guint)n + 1);
		q->searched = 0;
	}
	q->searched = q->in->len;
	if (q->in->len <= LINE_MAX_BYTES)
		return TRUE;
	g_set_error(error, VMM_ERROR, VMM_ERROR_GONE, "QMP: a line without an end");
	return FALSE;
}

gboolean qmp_receive(struct qmp *q, GError **error)
{
	for (;;) {
		uint8_t buffer[4096];
		ssize_t n = recv(q->fd, buffer, sizeof buffer, MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return TRUE;
		if (n <= 0) {
			g_set_error(error, VMM_ERROR, VMM_ERROR_GONE, "QEMU has ended");
			return FALSE;
		}
		g_byte_array_append(q->in, buffer, (guint)n);
		if (!take_lines(q, error))
			return FALSE;
	}
}

bool qmp_poll(struct qmp *q, nsec_t deadline)
{
	struct pollfd p = { .fd = q->fd, .events = POLLIN };
	for (;;) {
		int n = poll(&p, 1, deadline_ms(deadline));
		if (n >= 0 || errno != EINTR)
			return n > 0;
	}
}

static gboolean wait_for(struct qmp *q, const bool *flag, nsec_t deadline, const char *what, GError **error)
{
	for (;;) {
		if (!qmp_receive(q, error))
			return FALSE;
		if (flag ? *flag : q->reply != NULL)
			return TRUE;
		if (!qmp_poll(q, deadline)) {
			g_set_error(error, VMM_ERROR, VMM_ERROR_HUNG, "QEMU hung: no answer to %s", what);
			return FALSE;
		}
	}
}

/* ---- what goes out ---- */

static gboolean send_all(struct qmp *q, const char *text, size_t n, int pass_fd, GError **error)
{
	union { char room[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control = { 0 };
	for (size_t done = 0; done < n;) {
		struct iovec io = { (char *)text + done, n - done };
		struct msghdr m = { .msg_iov = &io, .msg_iovlen = 1 };
		if (pass_fd >= 0 && done == 0) {
			m.msg_control = control.room;
			m.msg_controllen = sizeof control.room;
			struct cmsghdr *c = CMSG_FIRSTHDR(&m);
			*c = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int)) };
			memcpy(CMSG_DATA(c), &pass_fd, sizeof pass_fd);
		}
		ssize_t sent = sendmsg(q->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0) {
			/* Commands are far smaller than the socket's buffer: if it is full, nobody reads. */
			bool full = errno == EAGAIN || errno == EWOULDBLOCK;
			g_set_error(error, VMM_ERROR, full ? VMM_ERROR_HUNG : VMM_ERROR_GONE, full ? "QEMU hung: it reads no commands" : "QEMU has ended");
			return FALSE;
		}
		done += (size_t)sent;
	}
	return TRUE;
}

/* The next command's text; arguments: taken. */
static char *command_text(struct qmp *q, const char *command, json_t *arguments)
{
	json_t *message = json_pack("{s:s, s:I, s:o*}", "execute", command, "id", (json_int_t)++q->next_id, "arguments", arguments);
	char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;
	json_decref(message);
	g_assert(text); /* our own commands can be written */
	g_strlcpy(q->command, command, sizeof q->command);
	return text;
}

/* Q9: QEMU answers with an error that has no number, which is passed over. */
static gboolean take_back(struct qmp *q, GError **error)
{
	if (!q->prepared)
		return TRUE;
	q->prepared = false;
	return send_all(q, "\xff", 1, -1, error);
}

gboolean qmp_send(struct qmp *q, const char *command, json_t *arguments, int pass_fd, GError **error)
{
	if (q->open) {
		json_decref(arguments);
		g_set_error(error, VMM_ERROR, VMM_ERROR_HUNG, "QEMU hung: it has not answered %s yet", q->command);
		return FALSE;
	}
	g_autofree char *text = command_text(q, command, arguments);
	q->open = take_back(q, error) && send_all(q, text, strlen(text), pass_fd, error);
	return q->open;
}

gboolean qmp_prepare(struct qmp *q, const char *command, json_t *arguments, GError **error)
{
	if (q->open || q->prepared) {
		json_decref(arguments);
		return TRUE;
	}
	g_autofree char *text = command_text(q, command, arguments);
	q->prepared = send_all(q, text, strlen(text) - 1, -1, error);
	return q->prepared;
}

gboolean qmp_go(struct qmp *q, GError **error)
{
	if (!q->prepared)
		return FALSE;
	q->prepared = false;
	q->open = send_all(q, "}", 1, -1, error);
	return q->open;
}

gboolean qmp_wait(struct qmp *q, nsec_t deadline, json_t **ret_value, GError **error)
{
	if (!wait_for(q, NULL, deadline, q->command, error))
		return FALSE;
	json_t *reply = g_steal_pointer(&q->reply);
	q->open = false;
	json_t *value = json_object_get(reply, "return");
	if (!value) {
		const char *why = json_string_value(json_object_get(json_object_get(reply, "error"), "desc"));
		g_set_error(error, VMM_ERROR, VMM_ERROR_REFUSED, "%s: %s", q->command, why ? why : "an error without a text");
	} else if (ret_value) {
		*ret_value = json_incref(value);
	}
	gboolean ok = value != NULL;
	json_decref(reply);
	return ok;
}

gboolean qmp_command(struct qmp *q, const char *command, json_t *arguments, nsec_t deadline, json_t **ret_value, GError **error)
{
	return qmp_send(q, command, arguments, -1, error) && qmp_wait(q, deadline, ret_value, error);
}

gboolean qmp_greet(struct qmp *q, nsec_t deadline, GError **error)
{
	return wait_for(q, &q->greeted, deadline, "the greeting", error) && qmp_command(q, "qmp_capabilities", NULL, deadline, NULL, error);
}
