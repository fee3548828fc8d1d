/* spawn.c - see spawn.h. */
#include "disk/spawn.h"

#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

struct order {
	const char *const *argv;
	int fd, target_fd, err_fd;
	pid_t *ret_pid;
	GError **error;
	gboolean ok;
	GAsyncQueue *done;
};

/* In the child, between fork and exec: only calls that are safe there. */
static void die_with_parent(gpointer parent)
{
	sigset_t none;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != GPOINTER_TO_INT(parent))
		_exit(127);   /* it died before prctl */
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);   /* the thread that forked blocks all */
}

static gboolean carry_out(struct order *o)
{
	return g_spawn_async_with_pipes_and_fds(NULL, o->argv, NULL,
	                                        G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD | G_SPAWN_STDOUT_TO_DEV_NULL, die_with_parent,
	                                        GINT_TO_POINTER(getpid()), -1, -1, o->err_fd, &o->fd, &o->target_fd, 1, o->ret_pid, NULL,
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

gboolean disk_spawn(const char *const *argv, int fd, int target_fd, int err_fd, pid_t *ret_pid, GError **error)
{
	static GOnce once = G_ONCE_INIT;
	GAsyncQueue *orders = g_once(&once, start_spawner, NULL);
	g_autoptr(GAsyncQueue) done = g_async_queue_new();
	struct order o = { argv, fd, target_fd, err_fd, ret_pid, error, FALSE, done };
	g_async_queue_push(orders, &o);
	g_async_queue_pop(done);
	return o.ok;
}
