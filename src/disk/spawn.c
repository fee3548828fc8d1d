/* spawn.c - see spawn.h. */
#include "disk/spawn.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

struct order {
	const char *const *argv;
	const int *fds;
	unsigned count;
	int err_fd;
	const struct identity *who;
	pid_t parent;
	pid_t *ret_pid;
	GError **error;
	gboolean ok;
	GAsyncQueue *done;
};

/* In the child, between fork and exec: only calls that are safe there. */
static void become_child(gpointer order)
{
	const struct order *o = order;
	sigset_t none;
	if (!identity_become(o->who, SIGKILL) || getppid() != o->parent)
		_exit(127);   /* no rights may be left over; the parent died before prctl */
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);   /* the thread that forked blocks all */
}

static gboolean carry_out(struct order *o)
{
	const int target[DISK_SPAWN_FDS_MAX] = { 3, 4, 5, 6 };
	o->parent = getpid();
	return g_spawn_async_with_pipes_and_fds(NULL, o->argv, NULL,
	                                        G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD | G_SPAWN_STDOUT_TO_DEV_NULL, become_child,
	                                        o, -1, -1, o->err_fd, o->fds, target, o->count, o->ret_pid, NULL,
	                                        NULL, NULL, o->error);
}

static gpointer spawner(gpointer orders)
{
	for (;;) {
		struct order *o = g_async_queue_pop(orders);
		g_autoptr(GAsyncQueue) done = g_async_queue_ref(o->done);   /* o is gone as soon as the caller has it */
		o->ok = carry_out(o);
		g_async_queue_push(done, o);
	}
	return NULL;
}

/* The queue of the thread, which is started here. Signals go to the process's other threads. */
static gpointer start_spawner(gpointer unused)
{
	(void)unused;
	sigset_t all, before;
	GAsyncQueue *orders = g_async_queue_new();
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	g_thread_unref(g_thread_new("disk-spawn", spawner, orders));
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return orders;
}

gboolean disk_spawn(const char *const *argv, const int *fds, unsigned count, int err_fd, const struct identity *who, pid_t *ret_pid, GError **error)
{
	static GOnce once = G_ONCE_INIT;
	GAsyncQueue *orders = g_once(&once, start_spawner, NULL);
	g_autoptr(GAsyncQueue) done = g_async_queue_new();
	struct order o = { .argv = argv, .fds = fds, .count = count, .err_fd = err_fd, .who = who, .ret_pid = ret_pid, .error = error, .done = done };
	g_async_queue_push(orders, &o);
	g_async_queue_pop(done);
	return o.ok;
}
