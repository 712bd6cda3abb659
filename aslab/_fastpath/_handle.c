/* Buffer: the handle of one allocation. See `_buffer.py` for what is always true of it.

   The memory of a handle is used for the next one only once nobody refers to it any more, so a handle that is kept
   never turns into somebody else's.

   The garbage collector does not see handles (but for those of subclasses), so 100,000 of them cost it nothing. A
   handle refers to its home, that to the pool, and that to the callbacks of the cache, and to the backends. So where
   there are any, or a backend is a client's own, a service whose method is a callback, or which is the backend, and
   which holds a buffer is a cycle, and would stay for ever if it ends without a free: such a cache's handles are of a
   type that the collector sees. (It does not see slots: what a constructor
   has built must not refer to a handle.) */

#include "_core.h"

PyObject *handle_new(Core *core, Origin *home, Slot *slot) /* takes over the slot's reference */
{
    Handle *handle;
    if (home->seen) {
        if ((handle = PyObject_GC_New(Handle, core->seen)) == NULL) {
            Py_DECREF(slot);
            return NULL;
        }
    } else if (core->n_handles) {
        handle = core->handles[--core->n_handles];
        _Py_NewReference((PyObject *)handle); /* it has kept its type */
    } else if ((handle = PyObject_New(Handle, core->handle)) == NULL) {
        Py_DECREF(slot);
        return NULL;
    }
    handle->home = (Origin *)Py_NewRef((PyObject *)home);
    handle->slot = slot;
    handle->view = handle->lent = handle->weak = handle->pinned = NULL;
    if (home->seen)
        PyObject_GC_Track(handle);
    return (PyObject *)handle;
}

void handle_clear_kept(Core *core)
{
    while (core->n_handles) {
        PyObject_Free(core->handles[--core->n_handles]);
        Py_DECREF(core->handle);
    }
}

int handle_traverse(PyObject *self, visitproc visit, void *arg)
{
    Handle *handle = (Handle *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(handle->home);
    Py_VISIT(handle->view);
    Py_VISIT(handle->lent);
    Py_VISIT(handle->pinned);
    return 0;
}

int handle_clear(PyObject *self)
{
    Handle *handle = (Handle *)self;
    Py_CLEAR(handle->home);
    Py_CLEAR(handle->view);
    Py_CLEAR(handle->lent);
    Py_CLEAR(handle->pinned);
    return 0;
}

/* Lost without a free, or its own buffer protocol was used: `Buffer.__del__` sees to it. */
void handle_finalise(PyObject *self)
{
    Handle *handle = (Handle *)self;
    if (handle->slot == NULL && handle->lent == NULL)
        return;
    Pending pending;
    HOLD(pending);
    Core *core = core_of(Py_TYPE(self));
    PyObject *done = core == NULL || core->lost == NULL ? NULL : PyObject_CallOneArg(core->lost, self);
    if (core == NULL) /* the interpreter is being torn down */
        PyErr_Clear();
    else if (done == NULL && PyErr_Occurred())
        PyErr_WriteUnraisable(self);
    Py_XDECREF(done);
    GO_ON(pending);
}

/* The last reference to it has gone. -1 if somebody has taken it up again. */
int handle_ends(PyObject *self)
{
    Handle *handle = (Handle *)self;
    if ((handle->slot != NULL || handle->lent != NULL) && PyObject_CallFinalizerFromDealloc(self) < 0)
        return -1;
    if (PyType_IS_GC(Py_TYPE(self)))
        PyObject_GC_UnTrack(self);
    if (handle->weak != NULL)
        PyObject_ClearWeakRefs(self);
    return 0;
}

static void handle_dealloc(PyObject *self)
{
    Handle *handle = (Handle *)self;
    PyTypeObject *type = Py_TYPE(self);
    if (handle_ends(self))
        return;
    Origin *home = handle->home;
    Core *core = home == NULL || home->magazine == NULL ? NULL : home->magazine->core;
    if (core != NULL && type == core->handle && core->n_handles < KEPT_HANDLES &&
        handle->slot == NULL && handle->view == NULL && handle->lent == NULL && handle->pinned == NULL) {
        core->handles[core->n_handles++] = handle;
        Py_DECREF(home);
        return;
    }
    handle_clear(self);
    Py_CLEAR(handle->slot);
    type->tp_free(self);
    Py_DECREF(type);
}

/* -- shortcuts */

/* -- views of pins

   A pin that has ended may have left its view object with somebody, who may know the address. In Python each pin notes
   that at once in the slot (`_views.remember`). Here the handle keeps the view of its last pin, and at the claim, or before a
   move, those that somebody still refers to are noted. So whatever the methods in Python see of a slot that is nobody's is
   as if they had done it. What is kept here belongs to a pin that is entered, or has ended. */

/* Keep the view of a pin that begins. -1 with an error. */
int handle_keep_pinned(Handle *handle, PyObject *view)
{
    PyObject *pinned = handle->pinned;
    if (pinned != NULL && PyList_Check(pinned)) {
        int failed = PyList_Append(pinned, view); /* first: the end of a view may call weak references, and they anything */
        Py_INCREF(pinned);
        for (Py_ssize_t i = PyList_GET_SIZE(pinned); !failed && i-- > 0;)
            if (i < PyList_GET_SIZE(pinned) && view_is_forgotten(PyList_GET_ITEM(pinned, i)))
                failed = PyList_SetSlice(pinned, i, i + 1, NULL);
        Py_DECREF(pinned);
        return failed;
    }
    PyObject *kept = NULL;
    if (pinned != NULL && !view_is_forgotten(pinned)) {
        Py_INCREF(pinned);
        kept = PyList_New(2);
        if (kept == NULL || handle->pinned != pinned) { /* garbage was collected, and what that ran has pinned or freed it */
            int failed = kept == NULL ? -1 : handle_keep_pinned(handle, view);
            Py_DECREF(pinned);
            Py_XDECREF(kept);
            return failed;
        }
        PyList_SET_ITEM(kept, 0, pinned);
        PyList_SET_ITEM(kept, 1, Py_NewRef(view));
    }
    handle->pinned = kept != NULL ? kept : Py_NewRef(view);
    Py_XDECREF(pinned);
    return 0;
}

/* Keep it no longer. 1 if it was kept, 0 if it has been noted in the slot since, -1 with an error. */
int handle_drop_pinned(Handle *handle, PyObject *view)
{
    PyObject *pinned = handle->pinned;
    if (pinned == view) {
        handle->pinned = NULL;
        Py_DECREF(view);
        return 1;
    }
    if (pinned != NULL && PyList_Check(pinned)) {
        for (Py_ssize_t i = PyList_GET_SIZE(pinned); i-- > 0;)
            if (PyList_GET_ITEM(pinned, i) == view)
                return PyList_SetSlice(pinned, i, i + 1, NULL) ? -1 : 1;
    }
    return 0;
}

/* Note in the slot those that somebody refers to. -1 with an error. */
static int handle_remember(Core *core, Handle *handle, Slot *slot)
{
    PyObject *pinned = handle->pinned;
    int failed = 0;
    if (pinned == NULL)
        return 0;
    handle->pinned = NULL;
    if (!PyList_Check(pinned))
        failed = !view_is_forgotten(pinned) && slot_remember(core, slot, pinned, handle->home);
    else
        for (Py_ssize_t i = 0; !failed && i < PyList_GET_SIZE(pinned); i++)
            if (!view_is_forgotten(PyList_GET_ITEM(pinned, i)))
                failed = slot_remember(core, slot, PyList_GET_ITEM(pinned, i), handle->home);
    if (failed && handle->pinned == NULL)
        handle->pinned = pinned;
    else
        Py_DECREF(pinned);
    return failed;
}

/* Whether an unreleased view is the only export of its slot, and nobody else refers to it or to what is behind it:
   then it can just go, and need not be remembered. (`_views.has_company` and `is_kept`.) */
static int is_alone(PyObject *object, Slot *slot)
{
    if (!PyMemoryView_Check(object) || Py_REFCNT(object) != 1 || slot->exports != 1)
        return 0;
    PyMemoryViewObject *view = (PyMemoryViewObject *)object;
    return !(view->flags & _Py_MEMORYVIEW_RELEASED) && view->exports == 0 && view->mbuf->exports == 1 &&
           Py_REFCNT(view->mbuf) == 1 && view->mbuf->master.obj == (PyObject *)slot;
}

/* Whether the views of pins have all gone, but for what the handle keeps of them: then those can go, too. */
static inline int is_unpinned(Handle *handle)
{
    return handle->pinned == NULL || (!PyList_Check(handle->pinned) && view_is_forgotten(handle->pinned));
}

/* Whether the magazine is all that a free of this object takes: never for a subclass, which may free in its own way. A pin
   that is just made in Python, under the guard, is an export without a view. */
int handle_is_plain(Handle *handle)
{
    Managed *managed = (Managed *)handle;
    Core *core = handle->home->magazine->core;
    PyTypeObject *type = Py_TYPE(handle);
    return type == core->handle || type == core->seen ||
           (type == core->managed && handle->home->movable && !managed->moving && !managed->emergency &&
            (managed->note == NULL || managed->note == Py_None) && (handle->view != NULL || handle->slot->exports == 0));
}

/* No view, no pin, no export: each view of a slot is known to the handle, or was made after that. But for one that another
   thread is just making, and ends as it finds the slot gone. The method in Python says the same. */
PyObject *handle_free(Core *Py_UNUSED(core), PyObject *const *args)
{
    Handle *handle = (Handle *)args[0];
    Origin *home = NULL;
    Slot *slot = NULL;
    PyObject *view = NULL, *pinned = NULL;
    BEGIN(handle)
    if (handle_is_whole(handle) && handle->lent == NULL && is_unpinned(handle) && handle_is_plain(handle) &&
        (handle->slot->extra == NULL || handle->slot->extra->kept == NULL) &&
        (handle->view == NULL || is_alone(handle->view, handle->slot))) {
        home = handle->home;
        slot = handle->slot;
        view = handle->view;
        pinned = handle->pinned;
        handle->slot = NULL; /* the claim */
        handle->view = handle->pinned = NULL;
        if (slot->extra != NULL)
            slot->extra->holder = NULL;
    }
    END()
    if (slot == NULL)
        return kept_free(handle);
    Py_INCREF(home); /* the end of the view may call weak references, and they anything */
    Py_XDECREF(view);
    Py_XDECREF(pinned);
    int failed = magazine_push(home->magazine, slot);
    if (!failed && (home->magazine->watch || Py_SIZE(home->magazine) > home->magazine->capacity))
        failed = magazine_settle(home);
    Py_DECREF(home);
    return failed ? NULL : Py_NewRef(Py_None);
}

/* `free` is called most, and so is a method descriptor: the interpreter calls those by a way of their own. */
PyObject *handle_free_directly(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *result = handle_free(NULL, &self);
    if (result != NULL || PyErr_Occurred())
        return result;
    Core *core = core_of(Py_TYPE(self));
    if (core == NULL)
        return NULL;
    return PyObject_CallOneArg(core->free.python, self);
}

static inline int is_moving(Core *core, Handle *handle)
{
    return Py_TYPE(handle) == core->managed && ((Managed *)handle)->moving;
}

/* A new view, and an export of the slot; or NULL, with an error or because that is not as simple. */
PyObject *handle_fresh_view(Core *core, Handle *handle)
{
    if (!handle_is_whole(handle) || is_moving(core, handle))
        return NULL;
    Slot *slot = (Slot *)Py_NewRef((PyObject *)handle->slot);
    PyObject *fresh = slot_view(slot);
    /* That may have collected garbage, and so have run any code, which may have freed the handle or begun to move it. */
    int still = fresh != NULL && handle->slot == slot && slot->ground != NULL && !is_moving(core, handle);
    if (still)
        slot_export(slot, fresh);
    Py_DECREF(slot);
    if (still || fresh == NULL)
        return fresh;
    Py_DECREF(fresh);
    return NULL;
}

PyObject *handle_view(Core *core, PyObject *const *args)
{
    Handle *handle = (Handle *)args[0];
    if (handle->view == NULL) {
        PyObject *fresh = handle_fresh_view(core, handle);
        if (fresh == NULL || handle->view == NULL) {
            if (fresh != NULL)
                handle->view = Py_NewRef(fresh);
            return fresh;
        }
        Py_DECREF(fresh); /* somebody else has looked meanwhile */
        return NULL;
    }
    if (!handle_is_whole(handle))
        return NULL;
    if (!PyMemoryView_Check(handle->view) ||
        ((PyMemoryViewObject *)handle->view)->flags & _Py_MEMORYVIEW_RELEASED)
        return NULL;
    return Py_NewRef(handle->view);
}

PyObject *handle_address(Core *Py_UNUSED(core), PyObject *const *args)
{
    Slot *slot = ((Handle *)args[0])->slot;
    return slot == NULL || slot->ground == NULL ? NULL : PyLong_FromVoidPtr(slot->memory + slot->ground->shift);
}

PyObject *handle_enter(Core *Py_UNUSED(core), PyObject *const *args)
{
    return ((Handle *)args[0])->slot == NULL ? NULL : Py_NewRef(args[0]);
}

PyObject *handle_exit(Core *core, PyObject *const *args)
{
    if (((Handle *)args[0])->slot == NULL)
        Py_RETURN_NONE;
    return handle_free(core, args);
}

/* -- its own buffer protocol: each consumer gets a view of its own */

/* A consumer that keeps the handle, and no export, counts as keeping the view: note what is behind it. -1 with an error. */
static int handle_lend(Handle *handle, PyObject *managed)
{
    PyObject *before = handle->lent;
    Py_ssize_t known = before == NULL ? 0 : PyTuple_GET_SIZE(before);
    for (Py_ssize_t i = 0; i < known; i++)
        if (PyTuple_GET_ITEM(before, i) == managed)
            return 0;
    Py_XINCREF(before);
    PyObject *lent = PyTuple_New(known + 1);
    if (lent != NULL && handle->lent == before) {
        for (Py_ssize_t i = 0; i < known; i++)
            PyTuple_SET_ITEM(lent, i, Py_NewRef(PyTuple_GET_ITEM(before, i)));
        PyTuple_SET_ITEM(lent, known, Py_NewRef(managed));
        Py_XSETREF(handle->lent, lent);
        Py_XDECREF(before);
        return 0;
    }
    Py_XDECREF(before);
    Py_XDECREF(lent);
    return lent == NULL ? -1 : handle_lend(handle, managed); /* garbage was collected, and what that ran has lent more */
}

static int handle_getbuffer(PyObject *self, Py_buffer *buffer, int flags)
{
    Handle *handle = (Handle *)self;
    Core *core = core_of(Py_TYPE(self));
    PyObject *view = core == NULL ? NULL : PyObject_GetAttr(self, core->view);
    PyObject *own = NULL;
    int failed = -1;
    buffer->obj = NULL;
    if (view == NULL)
        return -1;
    if (!PyMemoryView_Check(view)) {
        PyErr_SetString(PyExc_TypeError, "the view of a Buffer is a memoryview");
        goto done;
    }
    if (handle_lend(handle, (PyObject *)((PyMemoryViewObject *)view)->mbuf))
        goto done;
    own = PyMemoryView_FromObject(view);
    failed = own == NULL ? -1 : PyObject_GetBuffer(own, buffer, flags);
done:
    Py_XDECREF(own);
    Py_DECREF(view);
    return failed;
}

/* Never called, as the exporter is the consumer's own view; but numpy keeps an export only of what has it. */
static void handle_releasebuffer(PyObject *Py_UNUSED(self), Py_buffer *Py_UNUSED(buffer))
{
}

/* -- attributes, for the methods in Python */

static Py_ssize_t handle_length(PyObject *self)
{
    Origin *home = ((Handle *)self)->home;
    if (home == NULL) {
        PyErr_SetString(PyExc_AttributeError, "_home");
        return -1;
    }
    return home->size;
}

static PyObject *handle_get_view(PyObject *self, void *Py_UNUSED(closure))
{
    PyObject *view = ((Handle *)self)->view;
    return Py_NewRef(view == NULL ? Py_None : view);
}

static int handle_set_view(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    Handle *handle = (Handle *)self;
    PyObject *old = handle->view;
    handle->view = value == NULL || value == Py_None ? NULL : Py_NewRef(value);
    Py_XDECREF(old);
    return 0;
}

static PyObject *handle_get_lent(PyObject *self, void *Py_UNUSED(closure))
{
    PyObject *lent = ((Handle *)self)->lent;
    if (lent == NULL)
        PyErr_SetString(PyExc_AttributeError, "_lent");
    return Py_XNewRef(lent);
}

static int handle_set_lent(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    Handle *handle = (Handle *)self;
    if (value == NULL && handle->lent == NULL) {
        PyErr_SetString(PyExc_AttributeError, "_lent");
        return -1;
    }
    if (value != NULL && !PyTuple_Check(value)) {
        PyErr_SetString(PyExc_TypeError, "_lent is a tuple");
        return -1;
    }
    PyObject *old = handle->lent;
    handle->lent = Py_XNewRef(value);
    Py_XDECREF(old);
    return 0;
}

static PyObject *handle_get_typed(PyObject *self, void *offset)
{
    PyObject *value = *(PyObject **)((char *)self + (size_t)offset);
    if (value == NULL)
        PyErr_SetString(PyExc_AttributeError, "not allocated, or freed");
    return Py_XNewRef(value);
}

/* The shortcuts trust the type of what is here. */
static int has_type(PyObject *value, PyTypeObject *type)
{
    if (PyObject_TypeCheck(value, type))
        return 1;
    PyErr_Format(PyExc_TypeError, "%s expected, not %s", type->tp_name, Py_TYPE(value)->tp_name);
    return 0;
}

static int handle_set_home(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    Core *core = core_of(Py_TYPE(self));
    if (core == NULL)
        return -1;
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "a Buffer keeps its home");
        return -1;
    }
    if (!has_type(value, core->origin))
        return -1;
    Py_XSETREF(((Handle *)self)->home, (Origin *)Py_NewRef(value));
    return 0;
}

/* Let the methods in Python find a slot that is claimed as they would have left it: who holds it is a weak reference, and
   if somebody knows the address the handle has a view, so that they look. */
static int handle_show(Core *core, Handle *handle, Slot *slot, int claimed)
{
    if (slot_show_owner(slot) || handle_remember(core, handle, slot))
        return -1;
    int known = Py_TYPE(handle) == core->managed ? slot->exports : slot->extra != NULL && slot->extra->kept != NULL;
    if (!claimed || !known || handle->view != NULL)
        return 0;
    if ((handle->view = slot_view(slot)) == NULL)
        return -1;
    slot_export(slot, handle->view);
    return 0;
}

/* Deleting it is the claim of a free, setting it the way back from one that was refused, or a move. */
static int handle_set_slot(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    Handle *handle = (Handle *)self;
    Slot *old = handle->slot;
    Core *core = core_of(Py_TYPE(self));
    if (core == NULL || (value != NULL && !has_type(value, core->slot)))
        return -1;
    if (value == NULL && old == NULL) {
        PyErr_SetString(PyExc_AttributeError, "freed by somebody else");
        return -1;
    }
    handle->slot = (Slot *)Py_XNewRef(value);
    if (old == NULL)
        return 0;
    if (handle_show(core, handle, old, value == NULL)) {
        if (value == NULL)
            handle->slot = old;
        else
            Py_DECREF(old);
        return -1;
    }
    Py_DECREF(old);
    return 0;
}

static PyMethodDef handle_methods[] = {METHOD("__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS),
                                       {NULL, NULL, 0, NULL}};
static PyMemberDef handle_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Handle, weak), READONLY, NULL},
    {NULL, 0, 0, 0, NULL}};
static PyGetSetDef handle_getset[] = {
    {"_view", handle_get_view, handle_set_view, NULL, NULL},
    {"_lent", handle_get_lent, handle_set_lent, NULL, NULL},
    {"_slot", handle_get_typed, handle_set_slot, NULL, (void *)offsetof(Handle, slot)},
    {"_home", handle_get_typed, handle_set_home, NULL, (void *)offsetof(Handle, home)},
    {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot handle_slots[] = {{Py_tp_new, core_plain_new},
                                     {Py_tp_dealloc, handle_dealloc},
                                     {Py_tp_finalize, handle_finalise},
                                     {Py_tp_traverse, handle_traverse},
                                     {Py_tp_clear, handle_clear},
                                     {Py_sq_length, handle_length},
                                     {Py_bf_getbuffer, handle_getbuffer},
                                     {Py_bf_releasebuffer, handle_releasebuffer},
                                     {Py_tp_methods, handle_methods},
                                     {Py_tp_members, handle_members},
                                     {Py_tp_getset, handle_getset},
                                     {0, NULL}};
PyType_Spec handle_spec = {"aslab._fastpath._core.Buffer", sizeof(Handle), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, handle_slots};

static PyType_Slot seen_slots[] = {{Py_tp_dealloc, handle_dealloc},
                                   {Py_tp_finalize, handle_finalise},
                                   {Py_tp_traverse, handle_traverse},
                                   {Py_tp_clear, handle_clear},
                                   {0, NULL}};
PyType_Spec seen_spec = {"aslab._fastpath._core.SeenBuffer", sizeof(Handle), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, seen_slots};

static PyType_Slot emergency_slots[] = {{Py_tp_dealloc, handle_dealloc},
                                        {Py_tp_finalize, handle_finalise},
                                        {Py_tp_traverse, handle_traverse},
                                        {Py_tp_clear, handle_clear},
                                        {0, NULL}};
PyType_Spec emergency_spec = {"aslab._fastpath._core.EmergencyBuffer", sizeof(Handle), 0,
                              Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, emergency_slots};
