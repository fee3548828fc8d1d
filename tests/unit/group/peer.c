/* peer.c - one member of a corosync group, for corosync-test.py: commands on stdin, what the group says on stdout.
 *
 *   send TEXT | burst COUNT BYTES | leave          members MASK QUORATE | from HOST BYTES TEXT | lost WHY | error WHY */
#include "base/fault.h"
#include "group/group.h"

#include <glib-unix.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct group *group;
static GMainLoop *loop;

static void deliver(struct host_id from, const uint8_t *data, size_t n, void *user)
{
	(void)user;
	printf("from %u %zu %.*s\n", from.n, n, (int)MIN(n, 40), (const char *)data);
}

static void membership(host_mask members, bool quorate, void *user)
{
	(void)user;
	printf("members 0x%llx %d\n", (unsigned long long)members, quorate);
}

static void lost(const char *why, void *user)
{
	(void)user;
	printf("lost %s\n", why);
	group_corosync.leave(group);
	g_main_loop_quit(loop);
}

static void burst(unsigned count, size_t bytes)
{
	char *buffer = g_malloc0(bytes + 64);
	for (unsigned i = 0; i < count; i++) {
		snprintf(buffer, bytes + 64, "%u/%u", group_corosync.self(group).n, i);
		group_corosync.mcast(group, buffer, bytes);
	}
	g_free(buffer);
}

static gboolean on_command(int fd, GIOCondition condition, void *data)
{
	static char line[256];
	unsigned count;
	size_t bytes;
	(void)fd, (void)condition, (void)data;
	if (!fgets(line, sizeof line, stdin) || !strcmp(line, "leave\n")) {
		group_corosync.leave(group);
		g_main_loop_quit(loop);
		return G_SOURCE_REMOVE;
	}
	line[strcspn(line, "\n")] = 0;
	if (!strncmp(line, "send ", 5))
		group_corosync.mcast(group, line + 5, strlen(line + 5));
	if (sscanf(line, "burst %u %zu", &count, &bytes) == 2)
		burst(count, bytes);
	return G_SOURCE_CONTINUE;
}

int main(void)
{
	g_autoptr(GError) error = NULL;
	const struct group_callbacks callbacks = { deliver, membership, lost };
	setvbuf(stdout, NULL, _IOLBF, 0);
	setvbuf(stdin, NULL, _IONBF, 0);
	fault_read_environment(NULL);
	loop = g_main_loop_new(NULL, FALSE);
	group = group_corosync.join(&callbacks, NULL, &error);
	if (!group) {
		printf("error %s\n", error->message);
		return 1;
	}
	printf("self %u\n", group_corosync.self(group).n);
	g_unix_fd_add(0, G_IO_IN | G_IO_HUP, on_command, NULL);
	g_main_loop_run(loop);
	g_main_loop_unref(loop);
	return 0;
}
