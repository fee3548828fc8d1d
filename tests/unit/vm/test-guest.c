/* test-guest.c - the rules V1-V4 of vmm.h on a real guest. A test is named after the rule that it would see broken.
 *
 * The oracle: in each capture's hook the guest is stopped; there the test takes a plain copy of all RAM (the truth) and asks a compare tracker
 * of its own what has changed since the last capture. What the captures add up to must equal the truth, page for page. */
#include "devices.h"
#include "guest.h"

#include "base/fault.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#define WRITES "memwriter+4000+3000"
#define COUNTS "i=0;while+:;do+i=$((i%2B1));echo+COUNT+$i;sleep+0.05;done"

/* ---- the oracle ---- */

struct oracle {
	struct guest *guest;
	struct memory memory;
	struct tracker *compare;
	struct page_bits changed;   /* since the last capture that succeeded */
	uint8_t *truth, *image;
	uint64_t hash[2];
	bool fail;                  /* the hook shall fail */
	unsigned calls;
};

static void oracle_open(struct oracle *o, struct guest *g)
{
	*o = (struct oracle){ .guest = g, .truth = image_new(g), .image = image_new(g) };
	g_assert_true(memory_open(&o->memory, g->ram, g->spec.memory_bytes, NULL));
	o->compare = track_compare_new(&o->memory, NULL);
	g_assert_nonnull(o->compare);
	g_assert_true(bits_init(&o->changed, memory_pages(&o->memory)));
}

/* The RAM file is another one now; it has what the image has. */
static void oracle_reopen(struct oracle *o)
{
	o->compare->ops->free(o->compare);
	memory_close(&o->memory);
	g_assert_true(memory_open(&o->memory, o->guest->ram, o->guest->spec.memory_bytes, NULL));
	o->compare = track_compare_new(&o->memory, NULL);
	g_assert_nonnull(o->compare);
	bits_clear(&o->changed);
}

static void oracle_close(struct oracle *o)
{
	o->compare->ops->free(o->compare);
	bits_free(&o->changed);
	memory_close(&o->memory);
	image_free(o->guest, o->truth);
	image_free(o->guest, o->image);
}

static gboolean look(void *user, GError **error)
{
	struct oracle *o = user;
	o->calls++;
	g_assert_true(o->compare->ops->scan(o->compare, &o->changed, NULL));
	image_of_ram(o->guest, o->truth);
	memory_hash(&o->memory, o->hash);
	if (o->fail)
		g_set_error(error, VMM_ERROR, VMM_ERROR_REFUSED, "the hook says no");
	return !o->fail;
}

static void check_superset(const struct oracle *o, const struct capture *c)
{
	struct page_bits captured;
	g_assert_true(bits_init(&captured, o->changed.pages));
	for (size_t i = 0; i < c->ram.count; i++)
		bits_add(&captured, c->ram.index[i], 1);
	for (uint64_t page = 0; page < captured.pages; page++)
		if (bits_has(&o->changed, page) && !bits_has(&captured, page) &&
		    memcmp(o->image + page * VCFT_PAGE_SIZE, o->truth + page * VCFT_PAGE_SIZE, VCFT_PAGE_SIZE)) /* else it has changed back (T3) */
			g_error("page %" G_GUINT64_FORMAT " has changed and was not captured", (guint64)page);
	bits_free(&captured);
}

/* One capture, held against the truth. */
static void oracle_capture(struct oracle *o, struct capture *c)
{
	guest_capture(o->guest, c, look, o);
	check_superset(o, c);
	bits_clear(&o->changed);
	image_apply(o->image, c);
	g_assert_true(memcmp(o->image, o->truth, o->guest->spec.memory_bytes) == 0);
	g_assert_cmpuint(c->ram_hash[0], ==, o->hash[0]);
	g_assert_cmpuint(c->ram_hash[1], ==, o->hash[1]);
	g_assert_true(vm_state_is_whole(c->devices, c->devices_bytes - 1));
	g_assert_cmpuint(c->devices[c->devices_bytes - 1], ==, c->run == CAPTURE_OFF);
	g_assert_cmpint(c->pause > 0, ==, o->guest->vm->ours_to_run);
}

/* The same, where it must fail. */
static void refuse(struct oracle *o, struct capture *c)
{
	g_autoptr(GError) error = NULL;
	struct capture_hooks hooks = { .stopped = look, .user = o };
	g_assert_false(vmm_qemu.capture(o->guest->vm, c, &hooks, &error));
	g_assert_nonnull(error);
	g_assert_true(strstr(error->message, "vm t: ") == error->message);
}

/* ---- V1, V2 ---- */

static void capture_under_load(struct guest *g, unsigned epochs)
{
	struct oracle o;
	struct capture c = { 0 };
	oracle_open(&o, g);
	guest_boot(g);
	g_free(guest_expect(g, "memwriter ok"));
	for (unsigned i = 0; i < epochs; i++) {
		oracle_capture(&o, &c);
		g_test_message("epoch %u: %zu pages, %zu bytes of devices, pause %.2f ms, scan %.3f, copy %.3f", i, c.ram.count, c.devices_bytes,
		               (double)c.pause / 1e6, (double)c.scan / 1e6, (double)c.copy / 1e6);
		g_usleep(50000); /* an epoch */
	}
	guest_forget(g);
	g_free(guest_expect(g, "memwriter ok"));
	oracle_close(&o);
	capture_free(&c);
}

/* What is said of the ways in use: those that are not the first choice, each with a reason. */
static void expect_second_choices(const struct guest *g)
{
	g_autofree char *said = vmm_qemu.second_choices(g->vm);
	g_assert_true(!strcmp(vmm_qemu.tracker(g->vm), "uffd") == !(said && strstr(said, "tracker compare (")));
	g_assert_true(!strcmp(vmm_qemu.accelerator(g->vm), "kvm") == !(said && strstr(said, "accelerator tcg (")));
	g_assert_true(!strcmp(vmm_qemu.method(g->vm), "fifo") == !(said && strstr(said, "three commands")));
}

static void test_v2_uffd(void)
{
	if (!guest_requires())
		return;
	struct guest g = guest_new(WRITES);
	capture_under_load(&g, 15);
	if (strcmp(vmm_qemu.tracker(g.vm), "uffd"))
		g_test_skip("this kernel has no userfaultfd with WP_ASYNC: compared instead");
	g_assert_cmpstr(vmm_qemu.method(g.vm), ==, "fifo");
	expect_second_choices(&g);
	guest_stop(&g);
}

static void test_v2_compare(void)
{
	if (!guest_requires())
		return;
	struct guest g = guest_new(WRITES);
	g.spec.preload = NULL;
	capture_under_load(&g, 6);
	g_assert_cmpstr(vmm_qemu.tracker(g.vm), ==, "compare");
	expect_second_choices(&g);
	guest_stop(&g);
}

/* Pages that are hot, change, rest and change again, between captures that fail: the guest writes some at full speed and sometimes starts anew, on
 * other pages. */
static void test_v2_hot(void)
{
	if (!guest_requires())
		return;
	struct guest g = guest_new("while+:;do+timeout+2+memwriter+0+300;sleep+0.5;done");
	struct oracle o;
	struct capture c = { 0 };
	oracle_open(&o, &g);
	guest_boot(&g);
	g_free(guest_expect(&g, "memwriter ok"));
	for (unsigned i = 0; i < 60; i++) {
		o.fail = i % 7 == 3;
		if (o.fail)
			refuse(&o, &c);
		else
			oracle_capture(&o, &c);
		g_usleep(50000); /* an epoch */
	}
	oracle_close(&o);
	capture_free(&c);
	guest_stop(&g);
}

static void test_v2_two_cpus_rng(void)
{
	if (!guest_requires())
		return;
	static const char *const extra[] = { "-device", "virtio-rng-pci", NULL };
	struct guest g = guest_new(WRITES " vcft.run=" WRITES);
	g.spec.cpus = 2;
	g.spec.extra = extra;
	capture_under_load(&g, 10);
	guest_stop(&g);
}

static void test_v2_three_commands(void)
{
	if (!guest_requires())
		return;
	struct guest g = guest_new(WRITES);
	struct oracle o;
	struct capture c = { 0 };
	oracle_open(&o, &g);
	guest_start(&g, NULL, 0);
	g_assert_cmpint(unlink(g.vm->fifo_path), ==, 0); /* the FIFO way fails at its first try */
	guest_run(&g);
	for (unsigned i = 0; i < 4; i++)
		oracle_capture(&o, &c);
	g_assert_cmpstr(vmm_qemu.method(g.vm), ==, "three commands");
	g_assert_cmpuint(o.calls, ==, 4);
	oracle_close(&o);
	capture_free(&c);
	guest_stop(&g);
}

/* A second capture of a quiet guest takes few pages, whatever the size of its RAM. */
static void test_quiet_guest(void)
{
	if (!guest_requires())
		return;
	struct guest g = guest_new(NULL);
	struct capture c = { 0 };
	g.spec.memory_bytes = UINT64_C(1) << 30;
	g.spec.verify = false;
	guest_boot(&g);
	guest_capture(&g, &c, NULL, NULL);
	g_assert_cmpuint(c.ram.count, <, g.spec.memory_bytes / VCFT_PAGE_SIZE / 2);
	for (unsigned i = 0; i < 5; i++) {
		g_usleep(100000); /* an epoch */
		guest_capture(&g, &c, NULL, NULL);
	}
	g_test_message("quiet: %zu pages, pause %.2f ms, scan %.3f ms", c.ram.count, (double)c.pause / 1e6, (double)c.scan / 1e6);
	g_assert_cmpuint(c.ram.count, <, 2000);
	g_assert_cmpuint(c.ram.room, <, 5000); /* K7: not what the first one needed */
	g_assert_true(page_set_reserve(&c.ram, 3000));
	for (unsigned i = 0; i < 40 && c.ram.room >= 3000; i++)
		guest_capture(&g, &c, NULL, NULL);
	g_assert_cmpuint(c.ram.room, <, 3000); /* K7: nor what is twice too large for long; four times is given back at once */
	capture_free(&c);
	guest_stop(&g);
}

/* A paused VM can be captured and stays paused (checkpoint 0). */
static void test_v1_paused(void)
{
	if (!guest_requires())
		return;
	struct guest g = guest_new(NULL);
	struct capture c = { 0 };
	guest_start(&g, NULL, 0);
	guest_capture(&g, &c, NULL, NULL);
	g_assert_cmpint(c.pause, ==, 0);
	g_assert_false(qmp_events(g.vm->qmp)->running);
	capture_free(&c);
	guest_stop(&g);
}

/* ---- V3 ---- */

/* Pages that are written once, so that no later write hides a loss. */
static void write_once(struct guest *g)
{
	static unsigned n;
	g_autofree char *line = g_strdup_printf("dd if=/dev/urandom of=/tmp/once%u bs=64k count=16 2> /dev/null", n++);
	guest_type(g, line);
}

/* Captures that fail, each in its own way, and after each one that must make up for it. */
static void fail_and_make_up(struct oracle *o, struct capture *c)
{
	static const enum fault faults[] = { FAULT_CAPTURE_HOOK, FAULT_CAPTURE_PAGES, FAULT_CAPTURE_DEVICES };
	write_once(o->guest);
	o->fail = true;
	refuse(o, c);
	o->fail = false;
	oracle_capture(o, c);
	for (size_t i = 0; i < G_N_ELEMENTS(faults); i++) {
		write_once(o->guest);
		fault_clear();
		fault_set(faults[i], 1);
		refuse(o, c);
		g_assert_cmpuint(fault_fired(faults[i]), ==, 1);
		guest_type(o->guest, "true"); /* the guest goes on */
		oracle_capture(o, c);
	}
	fault_clear();
}

static void test_v3_failed_capture(void)
{
	if (!guest_requires())
		return;
	struct guest g = guest_new(NULL);
	struct oracle o;
	struct capture c = { 0 };
	oracle_open(&o, &g);
	guest_boot(&g);
	oracle_capture(&o, &c);
	fail_and_make_up(&o, &c);
	g.vm->method = VM_THREE_COMMANDS;
	fail_and_make_up(&o, &c);
	oracle_close(&o);
	capture_free(&c);
	guest_stop(&g);
}

/* K1: a FIFO that has room for all of the device state. The VM goes on before the copy is made: that is seen, and does not come again. */
static void test_v1_fifo_too_large(void)
{
	if (!guest_requires())
		return;
	struct guest g = guest_new(WRITES);
	struct oracle o;
	struct capture c = { 0 };
	oracle_open(&o, &g);
	guest_boot(&g);
	oracle_capture(&o, &c);
	g_assert_cmpuint(vm_fifo_bytes(g.vm), <, c.devices_bytes);
	g.vm->last_devices = 8 * c.devices_bytes;
	g_assert_cmpuint(vm_fifo_bytes(g.vm), >, c.devices_bytes);
	refuse(&o, &c);
	oracle_capture(&o, &c);
	oracle_capture(&o, &c);
	oracle_close(&o);
	capture_free(&c);
	guest_stop(&g);
}

/* K6: a first capture that fails after its early copy. The guest fills pages that it never touches again, so no later write hides a loss; by
 * then it has used up what the boot had left behind, so that they are new to the captures as well. */
static void test_v3_failed_first_capture(void)
{
	if (!guest_requires())
		return;
	struct guest g = guest_new("i=0;while+:;do+dd+if=/bin/busybox+of=/tmp/g$i+bs=64k+count=4+2>/dev/null;i=$((i%2B1));echo+FILLED+$i;done");
	g.spec.memory_bytes = 512u << 20;
	struct oracle o;
	struct capture c = { 0 };
	oracle_open(&o, &g);
	guest_boot(&g);
	g_free(guest_expect(&g, "FILLED 300"));
	for (unsigned i = 0; i < 3; i++) {
		fault_set(i == 1 ? FAULT_CAPTURE_HOOK : FAULT_CAPTURE_DEVICES, 1);
		refuse(&o, &c);
	}
	fault_clear();
	oracle_capture(&o, &c);
	oracle_capture(&o, &c);
	oracle_close(&o);
	capture_free(&c);
	guest_stop(&g);
}

/* A failed scan is made good: everything populated is captured. */
static void test_v2_failed_scan(void)
{
	if (!guest_requires())
		return;
	struct guest g = guest_new(WRITES);
	struct oracle o;
	struct capture c = { 0 };
	oracle_open(&o, &g);
	guest_boot(&g);
	oracle_capture(&o, &c);
	size_t all = c.ram.count;
	fault_set(FAULT_TRACK_SCAN, 1);
	oracle_capture(&o, &c);
	g_assert_cmpuint(c.ram.count, >=, all);
	fault_clear();
	oracle_capture(&o, &c);
	oracle_close(&o);
	capture_free(&c);
	guest_stop(&g);
}

/* QEMU that hangs: an error in time, and the VM is usable when it comes back. */
static void test_v3_hung(void)
{
	if (!guest_requires())
		return;
	if (!g_test_slow()) {
		g_test_skip("waits for a timeout: run with -m slow");
		return;
	}
	struct guest g = guest_new(WRITES);
	struct oracle o;
	struct capture c = { 0 };
	oracle_open(&o, &g);
	guest_boot(&g);
	oracle_capture(&o, &c);
	g_assert_cmpint(kill(vmm_qemu.pid(g.vm), SIGSTOP), ==, 0);
	g_autoptr(GError) error = NULL;
	struct capture_hooks hooks = { .stopped = look, .user = &o };
	g_assert_false(vmm_qemu.capture(g.vm, &c, &hooks, &error));
	g_assert_error(error, VMM_ERROR, VMM_ERROR_HUNG);
	g_assert_cmpint(kill(vmm_qemu.pid(g.vm), SIGCONT), ==, 0);
	guest_forget(&g);
	g_free(guest_expect(&g, "memwriter ok")); /* goes on with nobody reading */
	oracle_capture(&o, &c);
	oracle_capture(&o, &c);
	oracle_close(&o);
	capture_free(&c);
	guest_stop(&g);
}

/* dirty() of a VM whose process was killed in the middle of its epoch: what a rollback in place needs. */
static void test_v2_dirty_of_the_dead(void)
{
	if (!guest_requires())
		return;
	struct guest g = guest_new(WRITES);
	struct oracle o;
	struct capture c = { 0 };
	struct page_set dirty = { 0 };
	oracle_open(&o, &g);
	guest_boot(&g);
	g_free(guest_expect(&g, "memwriter ok"));
	oracle_capture(&o, &c);
	g_free(guest_expect(&g, "memwriter ok"));
	vmm_qemu.kill(g.vm);
	while (qmp_poll(g.vm->qmp, clock_now() + NSEC_PER_SEC) && qmp_receive(g.vm->qmp, NULL))
		;
	look(&o, NULL);
	g_assert_cmpuint(bits_count(&o.changed), >, 1000);
	g_assert_true(vmm_qemu.dirty(g.vm, &dirty, NULL));
	struct capture as_capture = { .ram = dirty };
	check_superset(&o, &as_capture);
	page_set_free(&dirty);
	oracle_close(&o);
	capture_free(&c);
	guest_stop(&g);
}

/* ---- V4 ---- */

static unsigned count_said(struct guest *g)
{
	g_autofree char *n = guest_expect(g, "COUNT ");
	return (unsigned)g_ascii_strtoull(n, NULL, 10);
}

/* Replace the RAM file by the image, as a recovery does. */
static void write_image(struct guest *g, const uint8_t *image)
{
	struct memory m;
	g_assert_cmpint(unlink(g->ram), ==, 0);
	g_assert_true(memory_open(&m, g->ram, g->spec.memory_bytes, NULL));
	static const uint8_t zeros[VCFT_PAGE_SIZE];
	for (uint64_t i = 0; i < memory_pages(&m); i++)
		if (memcmp(image + i * VCFT_PAGE_SIZE, zeros, VCFT_PAGE_SIZE))
			memcpy(m.map + i * VCFT_PAGE_SIZE, image + i * VCFT_PAGE_SIZE, VCFT_PAGE_SIZE);
	memory_close(&m);
}

static void check_ram_is(struct guest *g, const uint8_t *image)
{
	uint8_t *ram = image_new(g);
	image_of_ram(g, ram);
	g_assert_true(memcmp(ram, image, g->spec.memory_bytes) == 0);
	image_free(g, ram);
}

/* End the process, start another one from what the captures add up to; it is paused, and nothing in RAM has changed (V4). */
static void restore(struct oracle *o, const struct capture *c)
{
	struct guest *g = o->guest;
	guest_kill(g);
	write_image(g, o->image);
	guest_forget(g);
	nsec_t start = clock_now();
	guest_start(g, c->devices, c->devices_bytes);
	g_test_message("restored in %.1f ms", (double)(clock_now() - start) / 1e6);
	check_ram_is(g, o->image);
	struct page_set dirty = { 0 };
	g_assert_true(vmm_qemu.dirty(g->vm, &dirty, NULL));
	g_assert_cmpuint(dirty.count, <, 16); /* a page that QEMU has only looked at may count */
	page_set_free(&dirty);
	oracle_reopen(o);
}

static void count_past(struct guest *g, unsigned least)
{
	while (count_said(g) < least)
		;
}

/* The counter goes on at the captured value, though the first process had counted further. */
static void restore_and_count(struct oracle *o, struct capture *c)
{
	struct guest *g = o->guest;
	oracle_capture(o, c);
	guest_forget(g);
	unsigned captured = count_said(g);
	count_past(g, captured + 30);
	restore(o, c);
	guest_run(g);
	unsigned restored = count_said(g);
	g_assert_cmpuint(restored, <=, captured + 1);
	g_assert_cmpuint(restored + 10, >=, captured);
	for (unsigned i = 0; i < 3; i++)
		oracle_capture(o, c); /* the tracker counts from the restored state: the image stays exact */
}

static void restore_twice(struct guest *g)
{
	struct oracle o;
	struct capture c = { 0 };
	oracle_open(&o, g);
	guest_boot(g);
	count_past(g, 20);
	oracle_capture(&o, &c);
	restore_and_count(&o, &c);
	restore_and_count(&o, &c);
	oracle_close(&o);
	capture_free(&c);
}

static void test_v4_restore(void)
{
	if (!guest_requires())
		return;
	struct guest g = guest_new(COUNTS);
	restore_twice(&g);
	guest_stop(&g);
}

static void test_v4_restore_two_cpus(void)
{
	if (!guest_requires())
		return;
	static const char *const extra[] = { "-device", "virtio-rng-pci", NULL };
	struct guest g = guest_new(COUNTS " vcft.run=" WRITES);
	g.spec.cpus = 2;
	g.spec.extra = extra;
	restore_twice(&g);
	g_free(guest_expect(&g, "memwriter ok"));
	guest_stop(&g);
}

/* The guest asks a receiver that is not there, five times a second: its frames say that the NIC works. */
static void port_expect_more(struct port *port, unsigned than)
{
	for (unsigned i = 0; atomic_load(&port->frames) <= than; i++) {
		g_assert_cmpuint(i, <, 30000);
		g_usleep(1000); /* between two looks */
	}
}

/* NIC and disk in use: exact captures, and a restore that sends no frame of its own and finds its disk. */
static void test_v4_nic_and_disk(void)
{
	if (!guest_requires() || !disk_requires())
		return;
	struct guest g = guest_new("diskwriter+200+500 vcft.run=udpseq+send+10.79.0.2:9+200 vcft.ip0=10.79.0.1/24 "
	                           "vcft.arp=10.79.0.2@52:54:00:00:00:02");
	struct port port;
	struct disk_server disk;
	struct oracle o;
	struct capture c = { 0 };
	port_open(&port, g.dir);
	disk_open(&disk, g.dir);
	struct vm_nic nic = { port.path, { 0x52, 0x54, 0, 0, 0, 1 } };
	struct vm_disk drive = { disk.path };
	g.spec.nics = &nic;
	g.spec.disks = &drive;
	g.spec.nic_count = g.spec.disk_count = 1;
	oracle_open(&o, &g);
	guest_boot(&g);
	g_free(guest_expect(&g, "diskwriter ok"));
	port_expect_more(&port, 0);
	for (unsigned i = 0; i < 5; i++)
		oracle_capture(&o, &c);
	g_test_message("%zu bytes of devices, pause %.2f ms", c.devices_bytes, (double)c.pause / 1e6);
	g_assert_true(vmm_qemu.pause(g.vm, NULL)); /* the disk has no memory of older epochs */
	oracle_capture(&o, &c);
	guest_kill(&g);
	unsigned frames = atomic_load(&port.frames);
	restore(&o, &c);
	g_usleep(200000); /* an announcement would come at once */
	g_assert_cmpuint(atomic_load(&port.frames), ==, frames);
	guest_run(&g);
	g_free(guest_expect(&g, "diskwriter ok"));
	g_free(guest_expect(&g, "diskwriter ok"));
	port_expect_more(&port, frames);
	g_assert_cmpuint(atomic_load(&port.announcements), ==, 0);
	g_assert_cmpuint(atomic_load(&port.connections), ==, 2);
	guest_kill(&g);
	oracle_close(&o);
	capture_free(&c);
	disk_close(&disk);
	port_close(&port);
	guest_stop(&g);
}

/* ---- FI: RAM that comes while the guest runs ---- */

/* As an image says it (store.h). */
static const uint8_t *next_of_image(void *user, uint64_t *inout_first, uint64_t *ret_end, GError **error)
{
	static const uint8_t zeros[VCFT_PAGE_SIZE];
	struct oracle *o = user;
	uint64_t pages = memory_pages(&o->memory), page = *inout_first;
	(void)error;
	while (page < pages && !memcmp(o->image + page * VCFT_PAGE_SIZE, zeros, VCFT_PAGE_SIZE))
		page++;
	*inout_first = *ret_end = page;
	while (*ret_end < pages && *ret_end < page + 64 && memcmp(o->image + *ret_end * VCFT_PAGE_SIZE, zeros, VCFT_PAGE_SIZE))
		++*ret_end;
	return page < pages ? o->image + page * VCFT_PAGE_SIZE : NULL;
}

/* anew: on a RAM file that lacks all that the image has; else on the one that is there. */
static void restore_behind(struct oracle *o, const struct vm_fill *from, const struct capture *c, bool anew)
{
	struct guest *g = o->guest;
	guest_kill(g);
	if (anew)
		g_assert_cmpint(unlink(g->ram), ==, 0);
	guest_forget(g);
	g->spec.room_later = true;
	g->spec.fill = from;
	guest_start(g, c->devices, c->devices_bytes);
}

/* The guest stands still: what it has not written is what the image has, and nothing else counts as written. Returns how much that is. */
static size_t check_all_but_dirty(struct oracle *o)
{
	struct guest *g = o->guest;
	struct page_set dirty = { 0 };
	uint8_t *now = image_new(g);
	g_assert_true(vmm_qemu.dirty(g->vm, &dirty, NULL));
	image_of_ram(g, now);
	for (size_t i = 0; i < dirty.count; i++)
		memcpy(now + dirty.index[i] * VCFT_PAGE_SIZE, o->image + dirty.index[i] * VCFT_PAGE_SIZE, VCFT_PAGE_SIZE);
	g_assert_true(memcmp(now, o->image, g->spec.memory_bytes) == 0);
	size_t count = dirty.count;
	page_set_free(&dirty);
	image_free(g, now);
	return count;
}

#define MANY 5000u   /* pages: more than the guest writes meanwhile, fewer than are filled */

static void fill_behind(struct oracle *o, struct capture *c)
{
	struct guest *g = o->guest;
	struct vm_fill from = { next_of_image, NULL, o };
	g_autoptr(GError) error = NULL;
	fault_set(FAULT_FILL_LATE, 1);
	restore_behind(o, &from, c, true);
	g_assert_false(vmm_qemu.filled(g->vm));
	uint64_t loaded = memory_populated_count(&g->vm->memory);
	guest_run(g);
	g_free(guest_expect(g, "memwriter ok"));
	g_assert_cmpuint(count_said(g), >, 0);
	g_assert_cmpuint(memory_populated_count(&g->vm->memory), >, loaded);
	guest_capture(g, c, NULL, NULL);      /* a checkpoint meanwhile has what was written, and not what was filled (FI2, FI3) */
	g_assert_cmpuint(c->ram.count, >, 1000);
	g_test_message("%zu pages captured, %" G_GUINT64_FORMAT " are there", c->ram.count, (guint64)memory_populated_count(&g->vm->memory));
	image_apply(o->image, c);
	guest_capture(g, c, NULL, NULL);
	image_apply(o->image, c);
	g_assert_cmpuint(c->ram.count, <, MANY);
	g_assert_false(vmm_qemu.filled(g->vm));
	uint64_t there = memory_populated_count(&g->vm->memory);
	vmm_qemu.reserve(g->vm, NULL, &error);
	g_assert_cmpuint(memory_populated_count(&g->vm->memory), >, there + MANY);
	g_assert_no_error(error);
	g_assert_true(vmm_qemu.filled(g->vm));
	vmm_qemu.pause(g->vm, &error);
	g_assert_no_error(error);
	g_assert_cmpuint(check_all_but_dirty(o), <, MANY);
	guest_run(g);
	g_free(guest_expect(g, "memwriter ok"));
}

/* FI1: broken off in the middle, rolled back as a recovery does, taken up by another QEMU on the same file. */
static void break_off_and_go_on(struct oracle *o, struct capture *c)
{
	struct guest *g = o->guest;
	struct vm_fill from = { next_of_image, NULL, o };
	struct page_set dirty = { 0 };
	fault_set(FAULT_FILL_LATE, 1);
	restore_behind(o, &from, c, true);
	guest_run(g);
	g_free(guest_expect(g, "memwriter ok"));
	g_assert_true(vmm_qemu.pause(g->vm, NULL));
	g_assert_true(vmm_qemu.dirty(g->vm, &dirty, NULL));
	g_assert_cmpuint(dirty.count, >, 1000);
	for (size_t i = 0; i < dirty.count; i++)
		memcpy(vmm_qemu.ram(g->vm) + dirty.index[i] * VCFT_PAGE_SIZE, o->image + dirty.index[i] * VCFT_PAGE_SIZE, VCFT_PAGE_SIZE);
	page_set_free(&dirty);
	g_assert_false(vmm_qemu.filled(g->vm));
	vmm_qemu.abandon(g->vm);
	restore_behind(o, &from, c, false);
	g_assert_true(vmm_qemu.reserve(g->vm, NULL, NULL));
	g_assert_true(vmm_qemu.filled(g->vm));
	check_ram_is(g, o->image);
	g_assert_cmpuint(check_all_but_dirty(o), ==, 0);
	guest_run(g);
	g_free(guest_expect(g, "memwriter ok"));
}

/* Where QEMU cannot be served all is there before the state is loaded, and nothing is missed then. */
static void fill_all_before(struct oracle *o, struct capture *c)
{
	struct guest *g = o->guest;
	struct vm_fill from = { next_of_image, NULL, o };
	const char *preload = g->spec.preload;
	for (unsigned why = 0; why < 3; why++) {
		g->spec.preload = why == 0 ? NULL : preload;      /* no library; what it does cannot be read; verify */
		fault_set(FAULT_TRACK_OPEN, why == 1);
		fault_set(FAULT_FILL_LATE, 1);
		restore_behind(o, &from, c, true);
		g_assert_cmpstr(vmm_qemu.tracker(g->vm), ==, why == 2 ? "uffd" : "compare");
		g_assert_true(vmm_qemu.filled(g->vm));
		check_ram_is(g, o->image);
		guest_run(g);
		g_free(guest_expect(g, "memwriter ok"));
		g->spec.verify = why == 1;
	}
	fault_clear();
}

/* With a guest that writes, and one capture of it. */
static void after_a_capture(void (*what)(struct oracle *, struct capture *))
{
	char why[160];
	if (!guest_requires())
		return;
	if (!track_missing_probe(why, sizeof why)) {
		g_test_skip(why);
		return;
	}
	struct guest g = guest_new(COUNTS " vcft.run=" WRITES);
	struct oracle o;
	struct capture c = { 0 };
	oracle_open(&o, &g);
	guest_boot(&g);
	g_free(guest_expect(&g, "memwriter ok"));
	oracle_capture(&o, &c);
	g.spec.verify = false;
	what(&o, &c);
	oracle_close(&o);
	capture_free(&c);
	guest_stop(&g);
}

static void test_fi2_behind(void) { after_a_capture(fill_behind); }
static void test_fi1_broken_off(void) { after_a_capture(break_off_and_go_on); }
static void test_q10_all_before(void) { after_a_capture(fill_all_before); }

static void test_v4_torn_state(void)
{
	if (!guest_requires())
		return;
	struct guest g = guest_new(NULL);
	struct capture c = { 0 };
	guest_start(&g, NULL, 0);
	guest_capture(&g, &c, NULL, NULL);
	guest_kill(&g);
	g_autoptr(GError) error = NULL;
	g_assert_null(vmm_qemu.start(&g.spec, c.devices, c.devices_bytes / 2, &error));
	g_assert_error(error, VMM_ERROR, VMM_ERROR_STATE);
	g_clear_error(&error);
	memset(c.devices + 8, 0x5a, 200); /* whole, but not a state: QEMU refuses it */
	g_assert_null(vmm_qemu.start(&g.spec, c.devices, c.devices_bytes, &error));
	g_assert_error(error, VMM_ERROR, VMM_ERROR_STATE);
	g_test_message("%s", error->message);
	capture_free(&c);
	guest_stop(&g);
}

/* ---- a guest that ends ---- */

/* It may still be on its way. */
static void capture_until_off(struct guest *g, struct capture *c)
{
	nsec_t end = clock_now() + 60 * NSEC_PER_SEC;
	do {
		g_assert_cmpint(clock_now(), <, end);
		qmp_poll(g->vm->qmp, clock_now() + NSEC_PER_SEC);
		guest_capture(g, c, NULL, NULL);
	} while (c->run != CAPTURE_OFF);
}

/* A power-off is captured and restored; who is off is not run. A reset goes on. */
static void test_v5_off(void)
{
	if (!guest_requires())
		return;
	struct guest g = guest_new(NULL);
	struct capture c = { 0 };
	guest_boot(&g);
	guest_capture(&g, &c, NULL, NULL);
	g_assert_cmpint(c.run, ==, CAPTURE_RUNS);
	guest_type(&g, "(sleep 1; reboot -f) >/dev/null 2>&1 &");
	g_free(guest_expect(&g, "VCFT-GUEST-READY"));
	guest_capture(&g, &c, NULL, NULL);
	g_assert_cmpint(c.run, ==, CAPTURE_RUNS);
	guest_type(&g, "(sleep 1; poweroff -f) >/dev/null 2>&1 &");
	capture_until_off(&g, &c);
	g_assert_true(vmm_qemu.off(g.vm));
	guest_capture(&g, &c, NULL, NULL);
	g_assert_cmpuint(c.ram.count, ==, 0);
	guest_kill(&g);
	guest_start(&g, c.devices, c.devices_bytes);
	guest_run(&g);
	g_assert_true(vmm_qemu.off(g.vm));
	g_assert_false(qmp_events(g.vm->qmp)->running);
	guest_capture(&g, &c, NULL, NULL);
	g_assert_cmpint(c.run, ==, CAPTURE_OFF);
	capture_free(&c);
	guest_stop(&g);
}

/* ---- the process ---- */

static void test_kill(void)
{
	if (!guest_requires())
		return;
	struct guest g = guest_new(NULL);
	struct capture c = { 0 };
	g_autoptr(GError) error = NULL;
	guest_start(&g, NULL, 0);
	guest_run(&g);
	vmm_qemu.kill(g.vm);
	g_assert_false(vmm_qemu.capture(g.vm, &c, NULL, &error));
	g_assert_error(error, VMM_ERROR, VMM_ERROR_GONE);
	pid_t pid = vmm_qemu.pid(g.vm);
	guest_kill(&g);
	g_assert_cmpint(kill(pid, 0), ==, -1);
	capture_free(&c);
	guest_stop(&g);
}

static void test_refused_arguments(void)
{
	if (!guest_requires())
		return;
	static const char *const extra[] = { "-device", "no-such-device", NULL };
	struct guest g = guest_new(NULL);
	g.spec.extra = extra;
	g_autoptr(GError) error = NULL;
	g_assert_null(vmm_qemu.start(&g.spec, NULL, 0, &error));
	g_assert_error(error, VMM_ERROR, VMM_ERROR_START);
	g_assert_nonnull(strstr(error->message, "no-such-device")); /* QEMU's own words */
	guest_stop(&g);
}

static gpointer start_and_end(gpointer user)
{
	guest_start(user, NULL, 0);
	return NULL;
}

/* QEMU does not outlive the thread that started it. */
static void test_dies_with_us(void)
{
	if (!guest_requires())
		return;
	struct guest g = guest_new(NULL);
	g_thread_join(g_thread_new("start", start_and_end, &g));
	g_autoptr(GError) error = NULL;
	qmp_poll(g.vm->qmp, clock_now() + 10 * NSEC_PER_SEC);
	g_assert_false(vmm_qemu.run(g.vm, &error));
	g_assert_error(error, VMM_ERROR, VMM_ERROR_GONE);
	guest_stop(&g);
}

static void test_bare_pause(void)
{
	if (!guest_requires())
		return;
	struct guest g = guest_new(NULL);
	guest_boot(&g);
	for (unsigned i = 0; i < 5; i++) {
		nsec_t pause = 0;
		g_assert_true(vmm_qemu.bare_pause(g.vm, &pause, NULL));
		g_assert_cmpint(pause, >, 0);
	}
	g_assert_true(vmm_qemu.pause(g.vm, NULL));
	g_assert_true(vmm_qemu.run(g.vm, NULL));
	guest_type(&g, "true");
	guest_stop(&g);
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/vm/guest/V2-uffd", test_v2_uffd);
	g_test_add_func("/vm/guest/V2-hot", test_v2_hot);
	g_test_add_func("/vm/guest/V2-compare", test_v2_compare);
	g_test_add_func("/vm/guest/V2-failed-scan", test_v2_failed_scan);
	g_test_add_func("/vm/guest/V1-fifo-too-large", test_v1_fifo_too_large);
	g_test_add_func("/vm/guest/V3-failed-capture", test_v3_failed_capture);
	g_test_add_func("/vm/guest/V3-failed-first-capture", test_v3_failed_first_capture);
	g_test_add_func("/vm/guest/V3-hung", test_v3_hung);
	g_test_add_func("/vm/guest/V4-restore", test_v4_restore);
	g_test_add_func("/vm/guest/V4-nic-and-disk", test_v4_nic_and_disk);
	g_test_add_func("/vm/guest/V4-torn-state", test_v4_torn_state);
	g_test_add_func("/vm/guest/FI2-behind", test_fi2_behind);
	g_test_add_func("/vm/guest/FI1-broken-off", test_fi1_broken_off);
	g_test_add_func("/vm/guest/Q10-all-before", test_q10_all_before);
	g_test_add_func("/vm/guest/V5-off", test_v5_off);
	g_test_add_func("/vm/guest/kill", test_kill);
	g_test_add_func("/vm/guest/refused-arguments", test_refused_arguments);
	if (g_test_thorough()) {   /* not once more under a sanitizer: they are about QEMU, not about memory of ours */
		g_test_add_func("/vm/guest/V2-two-cpus-rng", test_v2_two_cpus_rng);
		g_test_add_func("/vm/guest/V2-three-commands", test_v2_three_commands);
		g_test_add_func("/vm/guest/V2-dirty-of-the-dead", test_v2_dirty_of_the_dead);
		g_test_add_func("/vm/guest/quiet", test_quiet_guest);
		g_test_add_func("/vm/guest/V1-paused", test_v1_paused);
		g_test_add_func("/vm/guest/V4-restore-two-cpus", test_v4_restore_two_cpus);
		g_test_add_func("/vm/guest/dies-with-us", test_dies_with_us);
		g_test_add_func("/vm/guest/bare-pause", test_bare_pause);
	}
	return g_test_run();
}
