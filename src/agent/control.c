/* control.c - see control.h.
 *
 * A verb answers at once, or leaves its client waiting for an event (`up`, `checkpoint`, `down`), or streams (`events`). */
#include "agent/control.h"

#include "agent/agent-private.h"
#include "agent/request.h"
#include "agent/status.h"

#include <errno.h>
#include <gio/gio.h>
#include <glib-unix.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define READERS_MAX 32u   /* at once; root is never kept out */
#define REST_MS 100                      /* without descriptors nobody is accepted for so long */

struct control {
	struct agent *agent;
	int fd;
	guint source;
	char *path;
	GPtrArray *clients;
};

struct client {
	struct control *control;
	int fd;
	enum rank { NOBODY, READER, MASTER } rank;   /* CS1 */
	uid_t user;
	guint in, out;
	GString *input, *output;
	unsigned listening;              /* id of events_listen(), 0: not */
	const char *waits_for;           /* event that ends the verb, NULL: streaming */
	json_int_t after;                /* `checkpoint`: an epoch later than this one */
	char vm[VCFT_NAME_MAX + 1];      /* `bare`: of this VM */
	bool ends_lost;                  /* `up`: the cluster that is lost ends first, and that is no answer */
	bool closing;
};

/* ---- a client's socket ---- */

static void client_close(struct client *c)
{
	if (c->listening)
		events_unlisten(c->control->agent->events, c->listening);
	g_clear_handle_id(&c->in, g_source_remove);
	g_clear_handle_id(&c->out, g_source_remove);
	close(c->fd);
	g_string_free(c->input, TRUE);
	g_string_free(c->output, TRUE);
	g_ptr_array_remove_fast(c->control->clients, c);
	g_free(c);
}

/* Returns false when the client is gone (and freed). */
static bool flush(struct client *c)
{
	ssize_t n = send(c->fd, c->output->str, c->output->len, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n < 0 && errno != EAGAIN) {
		client_close(c);
		return false;
	}
	if (n > 0)
		g_string_erase(c->output, 0, n);
	return true;
}

static gboolean on_writable(gint fd, GIOCondition condition, gpointer data)
{
	(void)fd;
	(void)condition;
	struct client *c = data;
	if (!flush(c))
		return G_SOURCE_REMOVE;
	if (c->output->len)
		return G_SOURCE_CONTINUE;
	c->out = 0;
	if (c->closing)
		client_close(c);
	return G_SOURCE_REMOVE;
}

/* Queue a line; it is written from the loop, so a client never goes away inside this call. */
static void say_line(struct client *c, const char *line)
{
	if (c->output->len + strlen(line) > CONTROL_BACKLOG_MAX) {
		c->closing = true;
		g_string_truncate(c->output, 0);
		shutdown(c->fd, SHUT_RDWR);
		return;
	}
	g_string_append(c->output, line);
	g_string_append_c(c->output, '\n');
	if (!c->out)
		c->out = g_unix_fd_add(c->fd, G_IO_OUT, on_writable, c);
}

static void say(struct client *c, json_t *object)
{
	char *line = json_dumps(object, JSON_COMPACT);
	json_decref(object);
	if (line)
		say_line(c, line);
	free(line);
}

static void refuse(struct client *c, const char *why)
{
	g_autofree char *text = g_utf8_make_valid(why, -1); /* json_pack() takes no other */
	say(c, json_pack("{s:b, s:s}", "ok", 0, "error", text));
}

/* ---- waiting for events ---- */

static void stop_listening(struct client *c)
{
	events_unlisten(c->control->agent->events, c->listening);
	c->listening = 0;
}

/* One event may be awaited by several clients, each for another VM or epoch. */
static bool ends_wait(const struct client *c, json_t *event, const char *name)
{
	if (strcmp(name, c->waits_for))
		return false;
	if (!strcmp(name, "bare-pause"))
		return !g_strcmp0(json_string_value(json_object_get(event, "vm")), c->vm);
	return strcmp(name, "checkpoint-committed") || json_integer_value(json_object_get(event, "epoch")) > c->after;
}

/* The awaited event is the answer; others show progress. */
static void on_event(const char *line, void *user)
{
	struct client *c = user;
	json_t *event = c->waits_for ? json_loads(line, 0, NULL) : NULL;
	const char *name = json_string_value(json_object_get(event, "event"));
	if (!c->waits_for) {
		say_line(c, line);
	} else if (name && ends_wait(c, event, name)) {
		json_object_set_new(event, "ok", json_true());
		stop_listening(c);
		say(c, json_incref(event));
	} else if (name && (!strcmp(name, "configuration-refused") || !strcmp(name, "cluster-lost"))) {
		const char *why = json_string_value(json_object_get(event, "error"));
		stop_listening(c);
		refuse(c, why ? why : "no image of a VM is left");
	} else if (name && !strcmp(name, "cluster-ended") && !c->ends_lost) {
		const char *why = c->control->agent->trouble;
		stop_listening(c);
		refuse(c, why ? why : "the cluster was ended");
	} else if (name && strcmp(name, "checkpoint-committed")) {
		c->ends_lost = c->ends_lost && strcmp(name, "cluster-ended");
		say(c, json_pack("{s:s}", "progress", name));
	}
	json_decref(event);
}

static void wait_for(struct client *c, const char *event)
{
	c->waits_for = event;
	c->listening = events_listen(c->control->agent->events, on_event, c, FALSE);
}

/* ---- verbs ---- */

static void verb_status(struct client *c, const struct agent_request *request)
{
	(void)request;
	say(c, json_pack("{s:b, s:o}", "ok", 1, "status", status_json(c->control->agent)));
}

static void verb_up(struct client *c, const struct agent_request *request)
{
	g_autoptr(GError) error = NULL;
	c->ends_lost = agent_lost(c->control->agent);
	wait_for(c, "recovery-finished");
	if (agent_up(c->control->agent, request->file, request->directory, request->text, &error))
		return;
	stop_listening(c);
	refuse(c, error->message);
}

static void verb_down(struct client *c, const struct agent_request *request)
{
	(void)request;
	if (!c->control->agent->cluster) {
		refuse(c, "no cluster is up");
		return;
	}
	wait_for(c, "cluster-ended");
	agent_down(c->control->agent);
}

static void verb_checkpoint(struct client *c, const struct agent_request *request)
{
	(void)request;
	struct epoch_view view;
	epoch_view(c->control->agent->core, &view);
	if (view.state != EPOCH_RUNNING) {
		refuse(c, "no cluster runs");
		return;
	}
	c->after = (json_int_t)view.begun.n;
	wait_for(c, "checkpoint-committed");
	agent_checkpoint(c->control->agent);
}

static void verb_events(struct client *c, const struct agent_request *request)
{
	c->waits_for = NULL;
	c->listening = events_listen(c->control->agent->events, on_event, c, TRUE);
	if (request->follow)
		return;
	stop_listening(c);
	say(c, json_pack("{s:b}", "ok", 1));
}

static void verb_console(struct client *c, const struct agent_request *request)
{
	struct agent *a = c->control->agent;
	uint32_t vm = agent_vm_by_name(a, request->vm);
	struct epoch_view view;
	epoch_view(a->core, &view);
	if (vm == VCFT_VM_MAX) {
		refuse(c, "no such VM");
	} else if (a->machines[vm]) {
		g_autofree char *path = machine_console_path(a->config, &a->cluster->vms[vm]);
		say(c, json_pack("{s:b, s:s}", "ok", 1, "socket", path));
	} else {
		const char *host = vm < view.vm_count ? a->peers[view.placement[vm].host.n].name : "no host";
		g_autofree char *why = g_strdup_printf("%s runs on %s: ask there", request->vm, host);
		refuse(c, why);
	}
}

struct bare { struct agent *agent; struct vm_id vm; };

static void bare_done(const nsec_t *pause, unsigned count, const GError *error, void *user)
{
	struct bare *b = user;
	json_t *list = json_array();
	for (unsigned i = 0; i < count; i++)
		json_array_append_new(list, json_real((double)pause[i] / NSEC_PER_USEC));
	events_say(b->agent->events, "bare-pause",
	           json_pack("{s:s, s:o, s:s?}", "vm", agent_vm_name(b->agent, b->vm), "pause_us", list, "error",
	                     error ? error->message : NULL));
	g_free(b);
}

static void verb_bare(struct client *c, const struct agent_request *request)
{
	struct agent *a = c->control->agent;
	uint32_t vm = agent_vm_by_name(a, request->vm);
	if (vm == VCFT_VM_MAX || !a->machines[vm]) {
		refuse(c, "bare needs a VM that runs on this host");
		return;
	}
	struct bare b = { a, { vm } };
	g_strlcpy(c->vm, request->vm, sizeof c->vm);
	wait_for(c, "bare-pause");
	machine_bare(a->machines[vm], request->count, bare_done, g_memdup2(&b, sizeof b));
}

static const struct { const char *name; enum rank least; void (*run)(struct client *, const struct agent_request *); } verbs[] = {
	[VERB_STATUS] = { "status", READER, verb_status }, [VERB_EVENTS] = { "events", READER, verb_events }, [VERB_UP] = { "up", MASTER, verb_up },
	[VERB_DOWN] = { "down", MASTER, verb_down }, [VERB_CHECKPOINT] = { "checkpoint", MASTER, verb_checkpoint },
	[VERB_CONSOLE] = { "console", MASTER, verb_console }, [VERB_BARE] = { "bare", MASTER, verb_bare },
};

/* CS1. Who was expected, in one line. */
static void refuse_verb(struct client *c, const char *verb, enum rank least)
{
	const char *group = c->control->agent->config->control_group;
	g_autofree char *readers = least == READER && group ? g_strdup_printf(" and members of group %s", group) : g_strdup("");
	g_autofree char *why = g_strdup_printf("%s is for root%s; this is user %u", verb, readers, (unsigned)c->user);
	refuse(c, why);
}

static void on_line(struct client *c, const char *line, size_t n)
{
	struct agent_request request;
	const char *why;
	if (!agent_request_parse(line, n, &request, &why)) {
		refuse(c, why);
		return;
	}
	if (c->rank < verbs[request.verb].least) {
		refuse_verb(c, verbs[request.verb].name, verbs[request.verb].least);
	} else {
		if (c->listening)
			stop_listening(c);
		verbs[request.verb].run(c, &request);
	}
	agent_request_clear(&request);
}

/* ---- connections ---- */

static gboolean on_readable(gint fd, GIOCondition condition, gpointer data)
{
	(void)condition;
	struct client *c = data;
	char buffer[16384];
	ssize_t n = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
	if (n < 0 && errno == EAGAIN)
		return G_SOURCE_CONTINUE;
	if (n > 0)
		g_string_append_len(c->input, buffer, n);
	if (n <= 0 || c->input->len > CONTROL_LINE_MAX) {
		c->in = 0;
		client_close(c);
		return G_SOURCE_REMOVE;
	}
	for (char *end; (end = memchr(c->input->str, '\n', c->input->len));) {
		size_t used = (size_t)(end - c->input->str);
		on_line(c, c->input->str, used);
		g_string_erase(c->input, 0, (gssize)used + 1);
	}
	return G_SOURCE_CONTINUE;
}

static bool is_member(int fd, const struct ucred *peer, gid_t group)
{
	gid_t groups[256];
	socklen_t n = sizeof groups;
	if (!group || getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &n) < 0)
		n = 0;
	bool member = group && peer->gid == group;
	for (size_t i = 0; i < n / sizeof *groups; i++)
		member = member || groups[i] == group;
	return member;
}

static enum rank rank_of(const struct control *control, int fd, uid_t *ret_user)
{
	struct ucred peer = { .uid = (uid_t)-1, .gid = (gid_t)-1 };
	socklen_t n = sizeof peer;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &n) < 0)
		return NOBODY;
	*ret_user = peer.uid;
	if (peer.uid == 0 || peer.uid == geteuid())
		return MASTER;
	return is_member(fd, &peer, control->agent->config->control_gid) ? READER : NOBODY;
}

static unsigned readers(const struct control *control)
{
	unsigned n = 0;
	for (guint i = 0; i < control->clients->len; i++)
		n += ((const struct client *)g_ptr_array_index(control->clients, i))->rank < MASTER;
	return n;
}

static gboolean on_connection(gint listener, GIOCondition condition, gpointer data);

static gboolean listen_again(gpointer data)
{
	struct control *control = data;
	control->source = g_unix_fd_add(control->fd, G_IO_IN, on_connection, control);
	return G_SOURCE_REMOVE;
}

static gboolean on_connection(gint listener, GIOCondition condition, gpointer data)
{
	(void)condition;
	struct control *control = data;
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)) {
		control->source = g_timeout_add(REST_MS, listen_again, control);   /* the socket would say at once that somebody waits */
		return G_SOURCE_REMOVE;
	}
	if (fd < 0)
		return G_SOURCE_CONTINUE;
	uid_t user = (uid_t)-1;
	enum rank rank = rank_of(control, fd, &user);
	if (rank < MASTER && readers(control) >= READERS_MAX) {
		close(fd);
		return G_SOURCE_CONTINUE;
	}
	struct client *c = g_new0(struct client, 1);
	c->control = control;
	c->fd = fd;
	c->rank = rank;
	c->user = user;
	c->input = g_string_new(NULL);
	c->output = g_string_new(NULL);
	c->in = g_unix_fd_add(fd, G_IO_IN | G_IO_HUP, on_readable, c);
	g_ptr_array_add(control->clients, c);
	return G_SOURCE_CONTINUE;
}

static bool admit(const char *path, gid_t group)
{
	return g_chmod(path, 0600) == 0 && (!group || (lchown(path, (uid_t)-1, group) == 0 && g_chmod(path, 0660) == 0));
}

/* Who is neither root nor of the group does not come further than connect(). */
static int listen_on(const char *path, gid_t group, GError **error)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	g_unlink(path);
	if (g_strlcpy(address.sun_path, path, sizeof address.sun_path) >= sizeof address.sun_path)
		errno = ENAMETOOLONG;
	else if (fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && admit(path, group) && listen(fd, 16) == 0)
		return fd;
	g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "control socket %s: %s", path, g_strerror(errno));
	if (fd >= 0)
		close(fd);
	return -1;
}

struct control *control_new(struct agent *agent, const char *path, GError **error)
{
	int fd = listen_on(path, agent->config->control_gid, error);
	if (fd < 0)
		return NULL;
	struct control *control = g_new0(struct control, 1);
	control->agent = agent;
	control->fd = fd;
	control->path = g_strdup(path);
	control->clients = g_ptr_array_new();
	control->source = g_unix_fd_add(fd, G_IO_IN, on_connection, control);
	return control;
}

/* What has been said is still sent, as far as it goes at once: why this agent ends is often the answer that somebody waits for. */
void control_free(struct control *control)
{
	while (control->clients->len) {
		struct client *c = g_ptr_array_index(control->clients, 0);
		if (!c->output->len || flush(c))
			client_close(c);
	}
	g_ptr_array_unref(control->clients);
	g_source_remove(control->source);
	close(control->fd);
	g_unlink(control->path);
	g_free(control->path);
	g_free(control);
}
