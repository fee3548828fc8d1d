/* test-agent.c - what the agent's parts promise by themselves: notes to the loop, the ring of events, the watchdog, spare memory. */
#include "agent/events.h"
#include "agent/post.h"
#include "agent/spare.h"
#include "agent/watchdog.h"

#include <glib.h>
#include <jansson.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- post ---- */

static GString *told;
static int dropped;
static GMainLoop *loop;

static void tell(void *data)
{
	g_string_append(told, data);
	if (!strcmp(data, "."))
		g_main_loop_quit(loop);
}

static void drop(void *data)
{
	g_free(data);
	dropped++;
}

static gpointer post_many(gpointer box)
{
	for (const char *c = "abcdefgh."; *c; c++)
		post_box_send(box, tell, g_strndup(c, 1), drop);
	return NULL;
}

static void test_post_keeps_order(void)
{
	told = g_string_new(NULL);
	dropped = 0;
	loop = g_main_loop_new(NULL, FALSE);
	struct post_box *box = post_box_new();
	GThread *thread = g_thread_new("poster", post_many, box);
	g_main_loop_run(loop);
	g_thread_join(thread);
	g_assert_cmpstr(told->str, ==, "abcdefgh.");
	post_box_close(box);
	while (g_main_context_iteration(NULL, FALSE))
		;
	g_assert_cmpint(dropped, ==, 9);
	g_main_loop_unref(loop);
	g_string_free(told, TRUE);
}

static void test_post_closed_box_tells_nothing(void)
{
	told = g_string_new(NULL);
	dropped = 0;
	struct post_box *box = post_box_new();
	post_many(box);
	post_box_close(box);
	while (g_main_context_iteration(NULL, FALSE))
		;
	g_assert_cmpstr(told->str, ==, "");
	g_assert_cmpint(dropped, ==, 9);
	g_string_free(told, TRUE);
}

/* The thread is behind what is told: the first is not done before the second has been added. */
static GMutex begin;

static void work(void *data)
{
	g_mutex_lock(&begin);
	*(char *)data = (char)g_ascii_toupper(*(char *)data);
	g_mutex_unlock(&begin);
}

static void test_queue_keeps_order(void)
{
	told = g_string_new(NULL);
	dropped = 0;
	loop = g_main_loop_new(NULL, FALSE);
	struct post_box *box = post_box_new();
	struct post_queue *queue = post_queue_new(box);
	g_mutex_lock(&begin);
	for (const char *c = "abcdefgh."; *c; c++)
		post_queue_add(queue, work, tell, g_strndup(c, 1), drop);
	while (g_main_context_iteration(NULL, FALSE))
		;
	g_assert_cmpstr(told->str, ==, "");
	g_mutex_unlock(&begin);
	g_main_loop_run(loop);
	g_assert_cmpstr(told->str, ==, "ABCDEFGH.");
	post_queue_add(queue, work, tell, g_strdup("x"), drop);
	post_queue_free(queue);             /* has it done, and the box does not tell it */
	post_box_close(box);
	while (g_main_context_iteration(NULL, FALSE))
		;
	g_assert_cmpstr(told->str, ==, "ABCDEFGH.");
	g_assert_cmpint(dropped, ==, 10);
	g_main_loop_unref(loop);
	g_string_free(told, TRUE);
}

/* ---- events ---- */

struct listener { struct events *events; unsigned id, heard; char last[256]; bool once; };

static void hear(const char *line, void *user)
{
	struct listener *l = user;
	l->heard++;
	g_strlcpy(l->last, line, sizeof l->last);
	if (l->once)
		events_unlisten(l->events, l->id);
}

static void test_events_reach_listeners(void)
{
	struct events *events = events_new();
	struct listener once = { .events = events, .once = true }, all = { .events = events };
	events_say(events, "before", NULL);
	once.id = events_listen(events, hear, &once, FALSE);
	all.id = events_listen(events, hear, &all, TRUE);
	g_assert_cmpuint(all.heard, ==, 1);
	events_say(events, "checkpoint-committed", json_pack("{s:i}", "epoch", 7));
	events_say(events, "degraded", NULL);
	g_assert_cmpuint(once.heard, ==, 1); /* it stopped listening within its call */
	g_assert_cmpuint(all.heard, ==, 3);
	json_t *seen = json_loads(once.last, 0, NULL);
	g_assert_cmpstr(json_string_value(json_object_get(seen, "event")), ==, "checkpoint-committed");
	g_assert_cmpint(json_integer_value(json_object_get(seen, "epoch")), ==, 7);
	g_assert_true(json_is_integer(json_object_get(seen, "time")));
	json_decref(seen);
	events_free(events);
}

static void test_events_ring_is_bounded(void)
{
	struct events *events = events_new();
	struct listener late = { .events = events };
	for (int i = 0; i < EVENTS_KEPT + 100; i++)
		events_say(events, "checkpoint-committed", json_pack("{s:i}", "epoch", i));
	events_listen(events, hear, &late, TRUE);
	g_assert_cmpuint(late.heard, ==, EVENTS_KEPT);
	events_free(events);
}

/* ---- watchdog ---- */

static _Noreturn void live(bool hang)
{
	if (!watchdog_start())
		_exit(2);
	GMainLoop *l = g_main_loop_new(NULL, FALSE);
	watchdog_attach();
	if (hang)
		for (;;)
			pause();
	g_timeout_add(2 * WATCHDOG_PATIENCE_MS, (GSourceFunc)(void (*)(void))g_main_loop_quit, l);
	g_main_loop_run(l);
	_exit(0);
}

static int end_of(bool hang)
{
	int status = 0;
	pid_t child = fork();
	if (child == 0)
		live(hang);
	g_assert_cmpint(waitpid(child, &status, 0), ==, child);
	return status;
}

static void test_watchdog_ends_a_hung_loop(void)
{
	int status = end_of(true);
	g_assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void test_watchdog_leaves_a_live_loop(void)
{
	int status = end_of(false);
	g_assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* ---- spare memory ---- */

#define PIECES 8192u
#define PIECE_BYTES 8192u
#define KEPT_EACH 64u

/* Pages of the blocks that have memory. */
static size_t resident(const uintptr_t *pieces)
{
	size_t n = 0;
	for (unsigned i = 0; i < PIECES; i++) {
		unsigned char there;
		uintptr_t page = (pieces[i] + PIECE_BYTES / 2) & ~(uintptr_t)4095;
		n += mincore((void *)page, 4096, &there) == 0 && (there & 1);
	}
	return n;
}

/* SP1 */
static void test_spare_memory_is_given_back(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	g_test_skip("the sanitizers' own malloc gives nothing back");
	return;
#endif
	static uintptr_t pieces[PIECES];
	void *little[SPARE_CALM];
	spare_attach();
	g_assert_false(spare_look());
	for (unsigned i = 0; i < PIECES; i++)
		pieces[i] = (uintptr_t)memset(malloc(PIECE_BYTES), 1, PIECE_BYTES);
	for (unsigned i = 0; i < SPARE_CALM; i++) {
		g_assert_false(spare_look());   /* this may not be the peak yet */
		little[i] = memset(malloc(SPARE_MORE / 16), 1, SPARE_MORE / 16);
	}
	for (unsigned i = 0; i < PIECES; i++)
		if (i % KEPT_EACH != 0)     /* so that free() finds nothing at the end of the arena */
			free((void *)pieces[i]);
	g_assert_cmpuint(resident(pieces), >, PIECES / 2);
	g_assert_true(spare_look());
	g_assert_false(spare_look());
	for (int turn = 0; turn < 1000 && resident(pieces) > PIECES / 10; turn++)
		g_usleep(10000);            /* until the thread has done it */
	g_assert_cmpuint(resident(pieces), <=, PIECES / 10);
	for (unsigned i = 0; i < PIECES; i += KEPT_EACH)
		free((void *)pieces[i]);
	for (unsigned i = 0; i < SPARE_CALM; i++)
		free(little[i]);
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/agent/watchdog/ends-a-hung-loop", test_watchdog_ends_a_hung_loop);
	g_test_add_func("/agent/watchdog/leaves-a-live-loop", test_watchdog_leaves_a_live_loop);
	g_test_add_func("/agent/post/keeps-order", test_post_keeps_order);
	g_test_add_func("/agent/post/closed-box-tells-nothing", test_post_closed_box_tells_nothing);
	g_test_add_func("/agent/post/queue-keeps-order", test_queue_keeps_order);
	g_test_add_func("/agent/events/reach-listeners", test_events_reach_listeners);
	g_test_add_func("/agent/events/ring-is-bounded", test_events_ring_is_bounded);
	g_test_add_func("/agent/spare/is-given-back", test_spare_memory_is_given_back);
	return g_test_run();
}
