/* loop.c - the switch's thread: epoll, requests of other threads, timers.
 *
 *   other thread ──request──► queue ──eventfd──► thread: run ──condition──► other thread goes on
 *
 * L1 Requests are run in the order of the calls, between events and never within one: nothing else changes a struct net.
 * L2 What an event, a request or a timer has put into the queues of ports and tunnels is written out before the next one is looked at: a
 *    frame waits for no other, a batch costs one system call. L3 A request waits at most for the event that is under way, not for the
 *    round: a cut stops a VM. L4 Memory that an event of the round may point to is freed at its end.
 * L5 Without descriptors nobody is accepted and nothing spins: the listener rests for REST.
 * Lock: net->lock, the only one; nothing is done under it but queueing. */
#include "net/net-private.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#define EVENTS 64
#define REST (100 * NSEC_PER_MSEC)
#define NICE (-10)              /* every frame waits for this thread, often beside vCPUs that never sleep */

void loop_error(GError **error, const char *format, ...)
{
	int e = errno;
	va_list ap;
	va_start(ap, format);
	g_autofree char *what = g_strdup_vprintf(format, ap);
	va_end(ap);
	g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(e), "%s: %s", what, g_strerror(e));
}

void loop_note(struct net *net, const char *format, ...)
{
	if (!net->callbacks.note)
		return;
	va_list ap;
	va_start(ap, format);
	g_autofree char *text = g_strdup_vprintf(format, ap);
	va_end(ap);
	net->callbacks.note(text, net->user);
}

/* ---- sources ---- */

void source_open(struct net *net, struct source *source, int fd, uint32_t events,
                 void (*ready)(struct net *, struct source *, uint32_t))
{
	*source = (struct source){ .fd = fd, .armed = events, .ready = ready };
	struct epoll_event e = { .events = events, .data.ptr = source };
	if (epoll_ctl(net->epoll, EPOLL_CTL_ADD, fd, &e) < 0)
		g_error("epoll_ctl: %s", g_strerror(errno)); /* no memory: as g_malloc */
}

void source_arm(struct net *net, struct source *source, uint32_t events)
{
	if (source->fd < 0 || source->armed == events)
		return;
	struct epoll_event e = { .events = source->armed = events, .data.ptr = source };
	(void)epoll_ctl(net->epoll, EPOLL_CTL_MOD, source->fd, &e);
}

void source_rest(struct net *net, struct source *listener)
{
	if (errno != EMFILE && errno != ENFILE && errno != ENOBUFS && errno != ENOMEM)
		return;
	source_arm(net, listener, 0);
	net->stats.rests++;
	net->rests_until = clock_now() + REST;
	net->next_timer = MIN(net->next_timer, net->rests_until);
}

/* Ports that have a connection do not listen. */
static void listen_again(struct net *net, nsec_t now)
{
	if (!net->rests_until)
		return;
	if (now < net->rests_until) {
		net->next_timer = MIN(net->next_timer, net->rests_until);
		return;
	}
	net->rests_until = 0;
	source_arm(net, &net->tunnel_listener, EPOLLIN);
	for (uint32_t n = 0; n < VCFT_NETWORK_MAX; n++)
		for (struct port *p = net->networks[n].ports; p; p = p->next)
			if (p->connection.fd < 0)
				source_arm(net, &p->listener, EPOLLIN);
}

int source_take(struct net *net, struct source *source)
{
	int fd = source->fd;
	if (fd >= 0)
		(void)epoll_ctl(net->epoll, EPOLL_CTL_DEL, fd, NULL);
	source->fd = -1;
	return fd;
}

void source_close(struct net *net, struct source *source)
{
	int fd = source_take(net, source);
	if (fd >= 0)
		close(fd);
}

void loop_bury(struct net *net, void *memory) { g_ptr_array_add(net->graves, memory); }

/* ---- requests ---- */

static void enqueue(struct net *net, struct request *request)
{
	request->next = NULL;
	*net->last = request;
	net->last = &request->next;
	g_atomic_int_set(&net->pending, 1);
	uint64_t one = 1;
	(void)!write(net->wakeup.fd, &one, sizeof one);
}

gboolean loop_call(struct net *net, struct request *request)
{
	request->wait = true;
	request->done = false;
	pthread_mutex_lock(&net->lock);
	enqueue(net, request);
	while (!request->done)
		pthread_cond_wait(&net->answered, &net->lock);
	pthread_mutex_unlock(&net->lock);
	return request->ok;
}

void loop_post(struct net *net, const struct request *request)
{
	struct request *copy = g_memdup2(request, sizeof *request);
	copy->wait = false;
	pthread_mutex_lock(&net->lock);
	enqueue(net, copy);
	pthread_mutex_unlock(&net->lock);
}

static struct request *take_request(struct net *net)
{
	pthread_mutex_lock(&net->lock);
	struct request *r = net->first;
	if (r && !(net->first = r->next))
		net->last = &net->first;
	if (!net->first)
		g_atomic_int_set(&net->pending, 0);
	pthread_mutex_unlock(&net->lock);
	return r;
}

static void answer(struct net *net, struct request *request)
{
	if (!request->wait) {
		g_free(request);
		return;
	}
	pthread_mutex_lock(&net->lock);
	request->done = true;
	pthread_cond_broadcast(&net->answered);
	pthread_mutex_unlock(&net->lock);
}

static void run_requests(struct net *net)
{
	while (g_atomic_int_get(&net->pending)) {
		struct request *r = take_request(net);
		if (!r)
			break;
		r->ok = TRUE;
		r->run(net, r);
		switch_flush(net);
		answer(net, r);
	}
}

static void wakeup_ready(struct net *net, struct source *source, uint32_t events)
{
	(void)net, (void)events;
	uint64_t n;
	(void)!read(source->fd, &n, sizeof n);
}

/* ---- the thread ---- */

static int timeout_ms(struct net *net)
{
	if (net->next_timer == INT64_MAX)
		return -1;
	nsec_t left = net->next_timer - clock_now();
	return left <= 0 ? 0 : (int)((left + NSEC_PER_MSEC - 1) / NSEC_PER_MSEC);
}

static void bury_all(struct net *net) { g_ptr_array_set_size(net->graves, 0); }

static gpointer thread_main(gpointer data)
{
	struct net *net = data;
	sigset_t all;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL); /* signals are for the loop of the process */
	(void)setpriority(PRIO_PROCESS, 0, NICE); /* this thread alone; without the right to, it does without */
	while (!net->quit) {
		struct epoll_event events[EVENTS];
		int n = epoll_wait(net->epoll, events, EVENTS, timeout_ms(net));
		for (int i = 0; i < n && !net->quit; i++) {
			struct source *s = events[i].data.ptr;
			if (s->fd >= 0)
				s->ready(net, s, events[i].events);
			switch_flush(net);
			run_requests(net);
		}
		if (net->next_timer != INT64_MAX && clock_now() >= net->next_timer) {
			tunnel_timers(net, clock_now());
			listen_again(net, clock_now());
			switch_flush(net);
		}
		bury_all(net);
	}
	return NULL;
}

gboolean loop_init(struct net *net, GError **error)
{
	pthread_mutex_init(&net->lock, NULL);
	pthread_cond_init(&net->answered, NULL);
	net->last = &net->first;
	net->next_timer = INT64_MAX;
	net->graves = g_ptr_array_new_with_free_func(g_free);
	net->wakeup.fd = -1;
	net->epoll = epoll_create1(EPOLL_CLOEXEC);
	int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (net->epoll < 0 || fd < 0) {
		loop_error(error, "epoll, eventfd");
		if (fd >= 0)
			close(fd);
		return FALSE;
	}
	source_open(net, &net->wakeup, fd, EPOLLIN, wakeup_ready);
	return TRUE;
}

static void run_quit(struct net *net, struct request *request)
{
	(void)request;
	net->quit = true;
}

gboolean loop_start(struct net *net, GError **error)
{
	net->thread = g_thread_try_new("vcft-net", thread_main, net, error);
	return net->thread != NULL;
}

void loop_stop(struct net *net)
{
	if (net->thread) {
		struct request quit = { .run = run_quit };
		loop_call(net, &quit);
		g_thread_join(net->thread);
		net->thread = NULL;
	}
}

void loop_clear(struct net *net)
{
	source_close(net, &net->wakeup);
	if (net->epoll >= 0)
		close(net->epoll);
	g_clear_pointer(&net->graves, g_ptr_array_unref);
	pthread_mutex_destroy(&net->lock);
	pthread_cond_destroy(&net->answered);
}
