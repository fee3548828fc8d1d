/* test-local.c - the group of one host keeps L1 and L2. */
#include "group/group.h"

#include <string.h>

struct seen { struct group *group; GMainLoop *loop; GString *log; bool inside, leave, echo; };

static void note(struct seen *s, const char *what, const void *data, size_t n)
{
	g_assert_false(s->inside);
	g_string_append(s->log, what);
	g_string_append_len(s->log, data, (gssize)n);
	g_string_append_c(s->log, ' ');
}

static void deliver(struct host_id from, const uint8_t *data, size_t n, void *user)
{
	struct seen *s = user;
	g_assert_cmpuint(from.n, ==, 1);
	note(s, "m:", data, n);
	if (s->echo && n && data[0] == 'a') {
		s->inside = true;
		group_local.mcast(s->group, "echo", 4);
		s->inside = false;
	}
	if (s->leave)
		group_local.leave(s->group);
	if (s->leave || (n && data[0] == 'z'))
		g_main_loop_quit(s->loop);
}

static void membership(host_mask members, bool quorate, void *user)
{
	g_assert_cmphex(members, ==, 2);
	g_assert_true(quorate);
	note(user, "member", "", 0);
}

static void lost(const char *why, void *user)
{
	(void)why, (void)user;
	g_assert_not_reached();
}

static const struct group_callbacks callbacks = { deliver, membership, lost };

static void start(struct seen *s)
{
	s->log = g_string_new(NULL);
	s->loop = g_main_loop_new(NULL, FALSE);
	s->inside = true;
	s->group = group_local.join(&callbacks, s, NULL);
	g_assert_nonnull(s->group);
	g_assert_cmpuint(group_local.self(s->group).n, ==, 1);
}

static void end(struct seen *s)
{
	g_string_free(s->log, TRUE);
	g_main_loop_unref(s->loop);
}

static void test_order(void)
{
	struct seen s = { .echo = true };
	char buffer[] = "b";
	start(&s);
	group_local.mcast(s.group, "a", 1);
	group_local.mcast(s.group, buffer, 1);
	buffer[0] = 'X';
	group_local.mcast(s.group, "", 0);
	group_local.mcast(s.group, "c", 1);
	s.inside = false;
	while (!strstr(s.log->str, "echo"))
		g_main_context_iteration(NULL, TRUE);
	group_local.mcast(s.group, "z", 1);
	g_main_loop_run(s.loop);
	g_assert_cmpstr(s.log->str, ==, "member m:a m:b m: m:c m:echo m:z ");
	group_local.leave(s.group);
	end(&s);
}

static void test_leave_in_callback(void)
{
	struct seen s = { .leave = true };
	start(&s);
	group_local.mcast(s.group, "a", 1);
	group_local.mcast(s.group, "b", 1);
	s.inside = false;
	g_main_loop_run(s.loop);
	while (g_main_context_iteration(NULL, FALSE))
		;
	g_assert_cmpstr(s.log->str, ==, "member m:a ");
	end(&s);
}

static void test_leave_at_once(void)
{
	struct seen s = { 0 };
	start(&s);
	group_local.mcast(s.group, "a", 1);
	group_local.leave(s.group);
	while (g_main_context_iteration(NULL, FALSE))
		;
	g_assert_cmpstr(s.log->str, ==, "");
	end(&s);
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/group/local/order", test_order);
	g_test_add_func("/group/local/leave-in-callback", test_leave_in_callback);
	g_test_add_func("/group/local/leave-at-once", test_leave_at_once);
	return g_test_run();
}
